"""How marks are made: the codec, marked LoRAs, marked decoders.

``python -m loracomp.training.watermark codec`` trains the codec of a base.
"""
