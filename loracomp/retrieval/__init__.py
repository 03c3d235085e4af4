"""Finding adapters: features read from weights, an index, and search."""
