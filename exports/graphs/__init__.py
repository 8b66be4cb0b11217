"""The graphs of a bundle, operator by operator: encode, decode, steer and the batch rule.

May import `bundle` of the runtime.
"""
