"""The feature store: what each feature of a corpus does, made once from stored features and read in milliseconds.

It may import `core`, `bundle` and `extraction`; reading a store needs numpy and pyarrow alone.
"""
