"""Training of the encoders that find adapters by what they draw: ``python -m loracomp.training.encoder``."""
