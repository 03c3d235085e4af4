"""One file per kind of model, as diffusers takes them for ``custom_pipeline``."""
