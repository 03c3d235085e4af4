"""The interface's reference as a page that fetches nothing from elsewhere."""

from __future__ import annotations

from html import escape
from typing import Any

_HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>loracomp: HTTP interface</title><style>
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code { font-size: .95em } td, th { text-align: left; vertical-align: top; padding: .15rem .8rem .15rem 0 }
section { border-top: 1px solid #8886; padding: .4rem 0 }
</style></head><body><h1>loracomp: HTTP interface</h1>
<p>The same for machines: <a href="openapi.json">openapi.json</a>. Errors are
<code>{"error": "one line"}</code>.</p>
"""


def reference(table: dict[str, Any]) -> str:
    """HTML of an OpenAPI document: routes by tag, with their parameters and bodies."""
    groups: dict[str, list[str]] = {}
    for path, deeds in table["paths"].items():
        for method, deed in deeds.items():
            groups.setdefault(deed["tags"][0], []).append(_route(table, path, method, deed))
    parts = [f"<h2>{escape(tag)}</h2>{''.join(routes)}" for tag, routes in groups.items()]
    return f"{_HEAD}{''.join(parts)}</body></html>"


def _route(table: dict[str, Any], path: str, method: str, deed: dict[str, Any]) -> str:
    rows = [
        (part["name"], _kind(part["schema"]), part["schema"].get("description", part["in"]))
        for part in deed.get("parameters", ())
    ]
    sent = deed.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    rows += _fields(table, sent)
    cells = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(kind)}</td><td>{escape(said)}</td></tr>"
        for name, kind, said in rows
    )
    title = f"<h3><code>{method.upper()} {escape(path)}</code></h3><p>{escape(deed['description'])}</p>"
    return f"<section>{title}{f'<table>{cells}</table>' if cells else ''}</section>"


def _fields(table: dict[str, Any], schema: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, kind and description of a body's fields."""
    found = table["components"]["schemas"].get(_named(schema), {})
    return [
        (name, _kind(field), field.get("description", ""))
        for name, field in found.get("properties", {}).items()
    ]


def _kind(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "anyOf" in schema:
        return " or ".join(_kind(part) for part in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    return _named(schema) or str(schema.get("type", "anything"))


def _named(schema: dict[str, Any]) -> str:
    return str(schema.get("$ref", "")).rsplit("/", 1)[-1]
