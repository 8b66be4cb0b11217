"""The campaign: faults, kills, strangers' files and long runs, for as long as one asks; see
docs/reference/reliability.md.

A part is a module here with `run(seconds, folder, seed=0)`. It gives a count for each outcome; `tried` and `faults` are
always among them. `keep` writes down what shows a fault, below `folder`.
"""
