"""Marks that LoRAs and their pictures carry, and the statistics that verify them."""
