"""Small drawings in SVG: the loss over the steps."""

from __future__ import annotations

from collections.abc import Sequence

from loracomp.app.ui.markup import Markup, empty, node

WIDTH, HEIGHT = 600, 140


def losses(points: Sequence[tuple[int, float]], steps: int) -> Markup:
    """Loss by step as a line, smoothed as the eye would; says in words where it stands.

    Args:
        points: (step, loss), ascending.
        steps: Steps of the whole run, the right edge.
    """
    if not points:
        return empty("No loss yet", "The curve starts with the first step.")
    smooth = _smoothed([loss for _, loss in points])
    low, high = min(smooth), max(smooth)
    span = (high - low) or 1.0
    last = max(steps, points[-1][0], 1)
    places = [
        f"{step / last * WIDTH:.1f},{HEIGHT - 4 - (value - low) / span * (HEIGHT - 8):.1f}"
        for (step, _), value in zip(points, smooth, strict=True)
    ]
    line = node("polyline", points=" ".join(places))
    words = f"loss {points[-1][1]:.4f} at step {points[-1][0]} of {last}"
    chart = node(
        "svg", line, viewBox=f"0 0 {WIDTH} {HEIGHT}", preserveAspectRatio="none", role="img",
        aria_label=f"Loss over the steps: {words}, smoothed from {smooth[0]:.4f} to {smooth[-1]:.4f}",
    )  # fmt: skip
    scale = node("p", f"{words}; the line runs between {low:.4f} and {high:.4f}", cls="lc-quiet")
    return node("div", chart, scale, cls="lc-chart")


def _smoothed(values: Sequence[float], share: float = 0.1) -> list[float]:
    """An exponential mean, wider where there are more values."""
    keep = max(share, 2 / (1 + len(values) / 20)) if len(values) < 380 else share
    out = [values[0]]
    for value in values[1:]:
        out.append(out[-1] + min(1.0, keep) * (value - out[-1]))
    return out
