"""What recolorings, filters and arrangements are called in plain words: four ways each."""

from __future__ import annotations

PHRASES: dict[str, tuple[str, ...]] = {
    "duotone": (
        "in two colors, {dark} and {light}",
        "with {dark} shadows and {light} highlights",
        "as a duotone of {dark} and {light}",
        "recolored from {dark} to {light}",
    ),
    "halved": (
        "with a {top} upper half and a {bottom} lower half",
        "{top} above and {bottom} below",
        "split into {top} and {bottom}",
        "colored {top} on top, {bottom} underneath",
    ),
    "blended": (
        "in a smooth gradient from {start} to {end}",
        "fading from {start} into {end}",
        "with a color ramp, {start} to {end}",
        "shaded across from {start} to {end}",
    ),
    "striped": (
        "with {one} and {other} stripes",
        "striped in {one} and {other}",
        "covered in {one} and {other} bands",
        "in a {one} and {other} striped pattern",
    ),
    "checked": (
        "with {one} and {other} checks",
        "as a {one} and {other} checkerboard",
        "in a checkered pattern of {one} and {other}",
        "filled with {one} and {other} squares",
    ),
    "dotted": (
        "with {one} polka dots on {other}",
        "covered in {one} dots over {other}",
        "in a {other} fabric with {one} spots",
        "spotted {one} on {other}",
    ),
    "turned": (
        "with all hues turned by {degrees} degrees",
        "in shifted, unnatural colors",
        "with every color replaced by another",
        "hue-rotated by {degrees} degrees",
    ),
    "flat": (
        "as a flat {color} silhouette",
        "cut out of {color} paper",
        "as a plain {color} shape",
        "as a shadow in {color}",
    ),
    "rimmed": (
        "with a thick {color} outline",
        "as a sticker with a {color} border",
        "framed by a bold {color} contour",
        "with a {color} rim around it",
    ),
    "banded": (
        "in shiny {metal} metal",
        "as polished {metal}",
        "made of {metal}",
        "with a {metal} metallic finish",
    ),
    "glass": (
        "as a stained glass window",
        "in leaded colored glass of {cells} cells",
        "as church glass with dark leading",
        "broken into glass panes",
    ),
    "facets": (
        "in low-poly facets",
        "made of flat triangles",
        "as a triangulated low-poly picture",
        "in angular facets of {size} pixels",
    ),
    "honeycomb": (
        "in hexagonal tiles",
        "as a honeycomb mosaic",
        "made of six-sided tiles",
        "tiled with hexagons of {size} pixels",
    ),
    "relief": (
        "embossed in {color} stone",
        "as a carved relief in {color}",
        "as a raised {color} imprint",
        "pressed into {color} plaster",
    ),
    "scanlines": (
        "on an old television with scan lines",
        "with horizontal CRT lines",
        "as a tube monitor shows it",
        "in glowing screen lines",
    ),
    "glitch": (
        "with digital glitches",
        "torn into shifted rows with color fringes",
        "as a corrupted video frame",
        "with broken, displaced bands",
    ),
    "swirl": (
        "twisted into a swirl",
        "spun around its center",
        "as if stirred in a whirlpool",
        "warped in a spiral",
    ),
    "waves": (
        "bent into waves",
        "rippling like a flag",
        "with a wavy distortion",
        "seen through flowing water",
    ),
    "kaleidoscope": (
        "in a kaleidoscope of {parts} parts",
        "mirrored around the center {parts} times",
        "as a symmetric rosette",
        "as a {parts}-fold mandala",
    ),
    "thermal": (
        "as a heat camera sees it",
        "in thermal colors",
        "as an infrared heat map",
        "in false colors from cold to hot",
    ),
    "oil": (
        "in thick oil paint",
        "painted with broad brush strokes",
        "as an oil painting",
        "in blotchy strokes of paint",
    ),
    "stitched": (
        "in cross-stitch",
        "embroidered on cloth",
        "sewn with little crosses",
        "as needlework of {size}-pixel stitches",
    ),
    "shadowed": (
        "with a long {color} shadow",
        "casting a diagonal {color} shadow",
        "with a flat {color} shadow to the corner",
        "over a long {color} drop shadow",
    ),
    "nightvision": (
        "in green night vision",
        "through a night scope",
        "in grainy green light",
        "as a night camera sees it",
    ),
    "photograph": (
        "as a faded sepia photograph",
        "in brown antique tones with dark corners",
        "as an old photograph",
        "in grainy sepia",
    ),
    "panels": (
        "in four pop-art panels",
        "repeated four times in loud colors",
        "as a pop-art print",
        "as a screen print of four tiles",
    ),
    "frosted": (
        "behind frosted glass",
        "scattered like through a shower door",
        "blurred into grains",
        "through rough glass",
    ),
    "rushed": (
        "in fast motion",
        "smeared by speed",
        "with motion blur at {degrees} degrees",
        "dragged across the picture",
    ),
    "anaglyph": (
        "as a red and cyan 3D picture",
        "with red and cyan ghosts",
        "as for 3D glasses",
        "in doubled red and blue-green",
    ),
    "contours": (
        "in contour lines like a map",
        "as a topographic map",
        "drawn by lines of equal brightness",
        "in nested level lines",
    ),
    "xray": (
        "as an x-ray",
        "inverted in pale blue on black",
        "as a radiograph",
        "like a medical scan",
    ),
    "bulged": (
        "through a fisheye lens",
        "bulging in the middle",
        "as seen in a crystal ball",
        "with a spherical bulge",
    ),
    "tiled": (
        "repeated in a grid of {count} by {count}",
        "as a {count} by {count} wallpaper",
        "tiled {count} times across",
        "many times in rows and columns",
    ),
    "zoomed": (
        "with rays of zoom blur",
        "rushing towards the viewer",
        "blurred outwards from the center",
        "with a radial blur",
    ),
}
"""Ways to say each family of looks after "drawn", the plainest first; parameters stand in braces."""

ARRANGEMENTS: dict[str, tuple[str, ...]] = {
    "sides": (
        "the left half of a {one} joined to the right half of a {other}",
        "half {one}, half {other}, cut down the middle",
        "a {one} on the left that becomes a {other} on the right",
        "a hybrid of a {one} and a {other}, side by side",
    ),
    "storeys": (
        "the top of a {one} on the bottom of a {other}",
        "a {one} above the waist and a {other} below",
        "the upper half of a {one} over the lower half of a {other}",
        "a hybrid with a {one} on top and a {other} underneath",
    ),
    "nested": (
        "a {other} with a small {one} inside",
        "a little {one} in the middle of a {other}",
        "a {one} sitting within a {other}",
        "a {other} that holds a {one}",
    ),
    "ringed": (
        "a {one} with four small {other} pictures in the corners",
        "a {one} surrounded by little copies of a {other}",
        "a {other} in every corner and a {one} in the center",
        "four of a {other} around one {one}",
    ),
    "stacked": (
        "a {one} balanced on top of a {other}",
        "a {other} carrying a {one} above it",
        "a tower of a {one} and a {other}",
        "a {one} standing on a {other}",
    ),
}
"""Ways to say how two subjects make one, the plainest first."""

ARTWORK: dict[str, tuple[str, ...]] = {
    "fxemoji": (
        "flat with angular shapes",
        "in the drawing of another phone",
        "with plain angular planes",
        "in simple flat planes",
    ),
    "streamline": (
        "with dark outlines and pastel fills",
        "in outlined pastel drawing",
        "in line art filled with soft colors",
        "with even black contours",
    ),
    "monotone": (
        "in solid black cutouts",
        "as a one-color pictogram",
        "as a black stencil",
        "in black and nothing else",
    ),
}
"""Ways to say each set of unseen artwork after "drawn"."""
