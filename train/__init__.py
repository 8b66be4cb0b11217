"""Harvest activations and fit sparse autoencoders on them, with torch."""

from sae_runtime.extras import require

require("train")
