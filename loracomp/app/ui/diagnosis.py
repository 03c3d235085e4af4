"""What picked adapters do to each other, in words and a table."""

from __future__ import annotations

from typing import Any

from loracomp.app.ui.markup import Markup, bullets, node, table


def shown(report: dict[str, Any]) -> Markup:
    """An interference report with its advice, as :meth:`loracomp.app.finding.Finding.diagnose` gives it."""
    advice = report["advice"]
    lead = node("p", node("strong", f"Take {advice['method']}: "), advice["reason"])
    rows = [
        (
            " + ".join(pair),
            block["name"],
            _number(block["cosines"][number]),
            _number(block["overlaps"][number]),
        )
        for number, pair in enumerate(report["pairs"])
        for block in (*report["blocks"], report["whole"])
    ]
    head = ("Pair", "Part of the model", "Cosine", "Shared directions")
    figures = table(head, rows, "What the adapters do to each other")
    words = "Cosine near 0: they leave each other alone; from 0.3 on they pull at the same things."
    more = node("details", node("summary", "The figures"), node("p", words, cls="lc-quiet"), figures)
    return node("div", lead, bullets(advice["warnings"]), more, cls="lc-notice lc-info", role="status")


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{round(value, 2) + 0.0:.2f}"
