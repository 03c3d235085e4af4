"""The one way in which methods, schedules, encoders, marks and attacks become known by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Generic, TypeVar, cast

from loracomp.errors import UnknownNameError

T = TypeVar("T")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered object, what it does in one line, and the paper it comes from."""

    name: str
    item: T
    summary: str
    paper: str


class Registry(Mapping[str, T]):
    """Maps names to objects; installed plug-ins join through entry points.

    Args:
        kind: What the entries are, for messages ("method", "encoder").
        group: Entry-point group whose modules are imported on first look-up.
    """

    def __init__(self, kind: str, group: str = "") -> None:
        self.kind = kind
        self.group = group
        self._entries: dict[str, Entry[T]] = {}

    def register(self, name: str, *, summary: str, paper: str = "") -> Callable[[Item], Item]:
        """Decorator that files an object under ``name``.

        Args:
            name: What users type.
            summary: One line for ``--help`` and drop-downs.
            paper: arXiv id, empty where there is none.

        Raises:
            ValueError: The name is taken.
        """

        def add(item: Item) -> Item:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is already registered")
            self._entries[name] = Entry(name, cast("T", item), summary, paper)
            return item

        return add

    def entry(self, name: str) -> Entry[T]:
        """The whole entry of ``name``; raises :class:`UnknownNameError` listing near names."""
        self._load_plugins()
        if name not in self._entries:
            raise UnknownNameError(self.kind, name, self._entries)
        return self._entries[name]

    def __getitem__(self, name: str) -> T:
        return self.entry(name).item

    def __iter__(self) -> Iterator[str]:
        self._load_plugins()
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def _load_plugins(self) -> None:
        group, self.group = self.group, ""
        for point in entry_points(group=group) if group else ():
            point.load()
