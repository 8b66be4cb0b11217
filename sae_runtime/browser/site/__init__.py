"""The site of `sae-runtime browse`: static files about the features of stores, which any web server can give out.

May import `core`, `bundle`, `store`, and for a model in the page `deployed` and `model`.
"""
