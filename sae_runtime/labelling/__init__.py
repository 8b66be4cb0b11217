"""Labels of features that other tools wrote: Neuronpedia, delphi and tables.

It may import `core`, `bundle`, `deployed` and `store`.
"""
