"""What the doctor says, in words."""

from __future__ import annotations

from typing import Any

from loracomp.app.refusals import NotFoundError
from loracomp.app.ui.markup import Markup, bullets, join, node, notice

_NOTHING = ("", "nothing to do")


def examined(report: dict[str, Any]) -> Markup:
    """A diagnosis as :func:`loracomp.app.editing.told` gives it."""
    if report.get("error"):
        return notice(str(report["error"]), "error")
    findings = report.get("findings") or []
    layers = (report.get("report") or {}).get("layers")
    whole = (
        f"The doctor: all of it loads ({layers} layers)"
        if report.get("complete")
        else "The doctor: part of it does not load"
    )
    head = notice(
        f"{whole}; {'nothing to mend' if not findings else 'see below'}.",
        "good" if report.get("complete") else "warning",
    )
    lines = [_line(one) for one in findings]
    return join([head, bullets(lines)])


def duplicates(app: Any, result: dict[str, Any]) -> Markup:
    """Who is the same as whom, and what is wrong with whom."""
    groups = [", ".join(_names(app, group)) for group in result.get("duplicates", [])]
    same = bullets(groups) if groups else node("p", "No two adapters are the same.")
    faults = [
        join([node("strong", f"{name}: "), "; ".join(lines)])
        for id_, lines in result.get("findings", {}).items()
        for name in _names(app, [id_])
    ]
    found = bullets(faults) if faults else node("p", "Nothing to mend.")
    return node("div", node("h3", "The same twice"), same, node("h3", "Faults"), found, data_state="done")


def _line(finding: dict[str, Any]) -> str:
    """A finding and how to mend it, where there is something to mend."""
    fix = str(finding.get("fix", ""))
    return str(finding["message"]) if fix in _NOTHING else f"{finding['message']}; {fix}"


def _names(app: Any, ids: list[str]) -> list[str]:
    names = []
    for id_ in ids:
        try:
            names.append(app.library.get(id_).name)
        except NotFoundError:
            continue
    return names
