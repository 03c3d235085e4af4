"""Training the gate of gated fusion: adapters of known concepts, pictures whose truth is known."""
