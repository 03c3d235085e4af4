"""Training adapters: configuration, data, losses and the loop."""
