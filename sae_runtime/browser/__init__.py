"""Static HTML pages about SAEs, made of JSON that other commands wrote.

May import `bundle` and `core`.
"""
