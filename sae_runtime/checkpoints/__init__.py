"""Checkpoints of other libraries: one reader for each format, and what the readers share.

`convert.convert` recognises a checkpoint, reads it and writes a bundle. A reader module has three names: `recognises`,
`read` and `ARCHITECTURES`. `read` gives a `checkpoint.Checkpoint`, which describes the SAE by `manifest.Architecture`.
Only the reader knows the format.
"""
