"""Filters over declared columns: a closed tree that each engine compiles, never text from a user.

rank <= 16 and licence in ('MIT', 'Apache-2.0') and not name contains 'test'
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from loracomp.errors import UnknownNameError, UsageError

COLUMNS: Mapping[str, type] = {
    "id": str, "path": str, "name": str, "base": str, "licence": str, "words": str, "trigger": str,
    "kind": str, "dialect": str, "groups": str, "delta": str, "encoder": str,
    "rank": int, "sites": int, "bytes": int, "quarantine": int, "added": int,
    "norm": float, "complete": bool, "heard": bool, "learned": bool,
}  # fmt: skip
"""Columns that filters may name, and the type of their values."""

OPERATORS = ("=", "!=", "<=", ">=", "<", ">", "in", "contains")
_DEEPEST = 32
_MOST = 256
Value = str | int | float | bool


@dataclass(frozen=True)
class Compare:
    """One column against a value, or against several for ``in``."""

    column: str
    operator: str
    value: Value | tuple[Value, ...]


@dataclass(frozen=True)
class All:
    """Every part holds; of no part at all, always."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Either:
    """Some part holds; of no part at all, never."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Not:
    """The part does not hold."""

    part: Filter


Filter = Compare | All | Either | Not
EVERYTHING = All(())


def both(*parts: Filter | None) -> Filter:
    """The filter that needs all of the parts that are there."""
    there = tuple(part for part in parts if part is not None and part != EVERYTHING)
    return there[0] if len(there) == 1 else All(there)


def compare(column: str, operator: str, value: Value | tuple[Value, ...]) -> Compare:
    """A checked comparison.

    Raises:
        UnknownNameError: No such column.
        UsageError: An operator or value that does not suit the column.
    """
    if column not in COLUMNS:
        raise UnknownNameError("column", column, COLUMNS)
    kind = COLUMNS[column]
    if operator not in OPERATORS or (operator == "contains" and kind is not str):
        raise UsageError(f"{column} {operator}: use one of {', '.join(OPERATORS)}; 'contains' is for words")
    if kind is bool and operator not in ("=", "!="):
        raise UsageError(f"{column} {operator}: it is true or false; use = or !=")
    if operator == "in":
        if not isinstance(value, tuple) or not 0 < len(value) <= _MOST:
            raise UsageError(f"{column} in: give 1 to {_MOST} values in brackets, such as ('MIT', 'CC0-1.0')")
        return Compare(column, operator, tuple(_typed(column, kind, part) for part in value))
    if isinstance(value, tuple):
        raise UsageError(f"{column} {operator}: takes one value; several go with 'in'")
    return Compare(column, operator, _typed(column, kind, value))


def _typed(column: str, kind: type, value: Value) -> Value:
    fits = isinstance(value, kind) and not (kind is not bool and isinstance(value, bool))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not fits or (isinstance(value, str) and "\0" in value) or not _storable(value):
        raise UsageError(f"{column}: takes {_KINDS[kind]}, not {value!r}")
    return value


def _storable(value: Value) -> bool:
    """Whether a number fits into 64 bits and is finite."""
    if isinstance(value, float):
        return value - value == 0
    return isinstance(value, str) or -(2**63) <= value < 2**63


_KINDS = {str: "text in quotes", int: "a whole number", float: "a number", bool: "true or false"}


def holds(where: Filter, row: Mapping[str, Any]) -> bool:
    """Whether a row passes; the meaning that every engine has to match."""
    if isinstance(where, All):
        return all(holds(part, row) for part in where.parts)
    if isinstance(where, Either):
        return any(holds(part, row) for part in where.parts)
    if isinstance(where, Not):
        return not holds(where.part, row)
    found, value = row[where.column], where.value
    if where.operator == "contains":
        return str(value).lower() in str(found).lower()
    if isinstance(value, tuple):
        return found in value
    return _TESTS[where.operator](found, value)


_TESTS: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*'|"[^"]*")|(?P<number>-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)"""
    r"""|(?P<symbol><=|>=|!=|<>|==|[=<>(),])|(?P<word>[A-Za-z_]\w*))"""
)


def parse(text: str) -> Filter:
    """The filter that a user wrote; comparisons with and, or, not and brackets.

    Raises:
        UnknownNameError: No such column.
        UsageError: Anything that cannot be understood, with the place.
    """
    return _Parser(text).whole()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text, self._tokens, position = text, [], 0
        while text[position:].strip():
            found = _TOKEN.match(text, position)
            if found is None or found.lastgroup is None:
                raise UsageError(f"--where {text!r}: cannot be read at {text[position:].strip()[:20]!r}")
            self._tokens.append((found.lastgroup, found[found.lastgroup]))
            position = found.end()
        self._next = 0

    def whole(self) -> Filter:
        found = self._either(0)
        if self._next < len(self._tokens):
            raise self._wrong("and, or, or the end")
        return found

    def _either(self, depth: int) -> Filter:
        if depth > _DEEPEST:
            raise UsageError(f"--where: brackets more than {_DEEPEST} deep; write it flatter")
        parts = [self._together(depth)]
        while self._took("or"):
            parts.append(self._together(depth))
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def _together(self, depth: int) -> Filter:
        parts = [self._one(depth)]
        while self._took("and"):
            parts.append(self._one(depth))
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _one(self, depth: int) -> Filter:
        if depth > _DEEPEST:
            raise UsageError(f"--where: 'not' more than {_DEEPEST} deep; write it flatter")
        if self._took("not"):
            return Not(self._one(depth + 1))
        if self._took("("):
            inner = self._either(depth + 1)
            self._need(")")
            return inner
        kind, column = self._peek()
        if kind != "word":
            raise self._wrong("a column")
        self._next += 1
        negated = self._took("not")
        operator = {"==": "=", "<>": "!="}.get(self._peek()[1].lower(), self._peek()[1].lower())
        if operator not in OPERATORS:
            raise self._wrong(f"one of {', '.join(OPERATORS)}")
        self._next += 1
        found = compare(column, operator, self._values() if operator == "in" else self._value())
        return Not(found) if negated else found

    def _values(self) -> tuple[Value, ...]:
        self._need("(")
        values = [self._value()]
        while self._took(","):
            values.append(self._value())
        self._need(")")
        return tuple(values)

    def _value(self) -> Value:
        kind, text = self._peek()
        self._next += 1
        if kind == "text":
            return text[1:-1].replace("''", "'") if text[0] == "'" else text[1:-1]
        if kind == "number":
            return float(text) if any(c in text for c in ".eE") else int(text)
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        self._next -= 1
        raise self._wrong("a value: a number, true, false, or text in quotes")

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._next] if self._next < len(self._tokens) else ("end", "")

    def _took(self, word: str) -> bool:
        kind, text = self._peek()
        found = kind in ("word", "symbol") and text.lower() == word
        self._next += found
        return found

    def _need(self, symbol: str) -> None:
        if not self._took(symbol):
            raise self._wrong(repr(symbol))

    def _wrong(self, wanted: str) -> UsageError:
        found = self._peek()[1] or "the end"
        return UsageError(f"--where {self._text!r}: {wanted} is needed where {found!r} stands")
