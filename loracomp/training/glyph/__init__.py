"""How glyph, the embedded base model, and its judge are made: data, VAE, denoiser, judge, export.

Everything here is a maintainer's recipe: nothing in it is imported when loracomp is used.
Run ``python -m loracomp.training.glyph --help`` for the steps in order.
"""
