"""A corpus of a thousand glyph adapters whose concepts are known: run ``python -m loracomp.training.corpus``.

Concepts hide behind nonsense words and differ from what glyph draws: recolored, recombined, filtered, or
artwork that it never saw. Nothing that GlyphBench measures with is in it.
"""
