"""The base that the app draws on, as its library calls it, and what such a base is made of."""

from __future__ import annotations

import hashlib
import json
import threading
from typing import TYPE_CHECKING

from loracomp.app.database import Database
from loracomp.bases import BASES
from loracomp.errors import ResourceError

if TYPE_CHECKING:
    from loracomp.formats.native import Table

CUSTOM = "custom"
"""What adapters for a base with an architecture of its own have as their base."""
_SCHEMA = "CREATE TABLE IF NOT EXISTS grounds (mark TEXT NOT NULL);"


class Ground:
    """The base of an app.

    Args:
        base: Name, diffusers folder, checkpoint or hub id.

    Attributes:
        name: Name of the known base that it is, :data:`CUSTOM` for a folder whose layers are those of none,
            empty as long as that is not known.
    """

    def __init__(self, base: str) -> None:
        self._base, self._lock = base, threading.Lock()
        self._modules: Table | None = None
        self._read = base in BASES
        self.name = base if self._read else ""

    def modules(self) -> Table | None:
        """Weight shapes by module path where the base has an architecture of its own, else None."""
        with self._lock:
            if not self._read:
                from loracomp.formats import base_layers

                try:
                    known, self._modules = base_layers(self._base)
                except ResourceError:
                    # Whoever opens the base says what is wrong with it.
                    known = None
                self.name = CUSTOM if self._modules else known if known and known in BASES else ""
                self._read = True
            return self._modules

    def changed(self, database: Database) -> bool:
        """Whether adapters were last noted for another architecture than this; the next call says no."""
        database.schema(_SCHEMA)
        seen = database.row("SELECT mark FROM grounds")
        text = json.dumps(sorted((path, list(shape)) for path, shape in (self.modules() or {}).items()))
        mark = hashlib.sha256(text.encode()).hexdigest() if self._modules else ""
        if (seen["mark"] if seen else "") == mark:
            return False
        with database.change():
            database.run("DELETE FROM grounds")
            database.run("INSERT INTO grounds VALUES (?)", (mark,))
        return True
