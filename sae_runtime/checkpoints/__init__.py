"""Checkpoints of other libraries: a reader for each format, and what they share.

`convert.convert` recognises a checkpoint, reads it and writes a bundle. A reader gives a `checkpoint.Checkpoint`, which
says what the SAE computes in the terms of `manifest.Architecture`. Only the reader knows the format.
"""
