"""The prompts by which adapters are probed: what pictures show, how they look, and words that mean nothing.

The bank is part of every feature's definition. A change of it needs another :data:`VERSION`.
"""

from __future__ import annotations

VERSION = 1
_THINGS = (
    "apple", "cat", "dog", "horse", "fish", "bird", "owl", "lion", "dragon", "robot", "castle", "house",
    "tree", "flower", "rose", "mountain", "river", "ocean", "beach", "forest", "desert", "city", "street",
    "bridge", "car", "train", "airplane", "boat", "bicycle", "rocket", "moon", "sun", "star", "cloud",
    "rain", "snow", "fire", "lamp", "clock", "book", "pencil", "key", "sword", "crown", "ring", "hat",
    "shoe", "shirt", "dress", "bag", "chair", "table", "bed", "cup", "bottle", "knife", "guitar", "drum",
    "violin", "camera", "phone", "computer", "ball", "kite", "balloon", "candle", "gift", "flag", "coin",
    "skull", "heart", "hand", "eye", "face", "woman", "man", "child", "baby", "king", "wizard", "soldier",
    "doctor", "dancer", "angel", "ghost", "pizza", "bread", "cheese", "cake", "egg", "banana", "cherry",
    "grape", "carrot", "mushroom", "pepper", "butterfly", "bee", "spider", "snake", "turtle", "frog",
    "whale", "octopus", "penguin", "elephant", "bear", "pig", "cow", "sheep", "rabbit", "mouse", "monkey",
    "tiger", "fox", "wolf", "volcano", "planet", "umbrella",
)  # fmt: skip
_STYLES = (
    "watercolor painting", "oil painting", "pencil sketch", "ink drawing", "charcoal drawing",
    "pastel drawing", "pixel art", "low poly render", "3d render", "clay figure", "paper cut", "origami",
    "stained glass", "mosaic", "embroidery", "graffiti", "woodcut print", "linocut", "engraving",
    "comic book", "cartoon", "anime", "manga", "line art", "flat design", "blueprint", "neon sign",
    "halftone print", "silhouette", "photograph", "black and white photograph", "film still", "polaroid",
    "icon", "emoji", "sticker", "logo", "poster", "pop art", "cubist painting", "impressionist painting",
    "art deco", "baroque painting", "cyberpunk", "steampunk", "fantasy art", "vaporwave", "minimalist",
)  # fmt: skip
_LOOKS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray",
    "golden", "made of wood", "made of metal", "made of glass", "made of stone", "made of fabric",
    "made of ice", "with a thick outline", "with soft shading", "with bright colors", "with muted colors",
    "in sepia", "on a white background", "on a dark background", "on a blue background",
    "seen from above", "close up", "from the side", "in the distance", "at night", "at sunset", "in fog",
    "under water", "backlit", "symmetrical", "upside down", "blurred", "very detailed", "very simple",
    "old and worn", "shiny",
)  # fmt: skip
_EMPTY = ("", "an image", "a picture of something", "a photo", "a drawing", "sks", "xyz", "zwx thing")
BANK: tuple[str, ...] = (
    *(f"a {word}" for word in _THINGS),
    *(f"{word}" for word in _STYLES),
    *(f"a thing, {word}" for word in _LOOKS),
    *_EMPTY,
)
