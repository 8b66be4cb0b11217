"""Text that a language model's graph writes: one loop with keys and values, whose requests join and leave it.

It may import `core`, `bundle`, `engine`, `text` and `deployed`.
"""
