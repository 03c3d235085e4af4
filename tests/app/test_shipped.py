"""What the gallery says of shipped adapters without opening them is what their headers say."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from loracomp.app import shipped
from loracomp.app.facts import read_facts
from loracomp.app.shipped import SHIPPED, shipped_facts
from loracomp.app.state import App
from loracomp.library import cards


def test_shipped_facts_are_those_of_the_files() -> None:
    known = list(cards())
    assert known
    for card in known:
        facts = read_facts(card.file)
        words = f"{facts.words} {card.name} {card.kind}".lower()
        assert facts.base == card.base
        assert shipped_facts(card.file) == replace(facts, name=card.name, kind=card.kind, words=words)


def test_other_files_and_damaged_ones_are_left_to_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copy(next(SHIPPED.glob("*.safetensors")), tmp_path))
    assert shipped_facts(copy) is None
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path)
    monkeypatch.setattr(shipped, "_manifest", lambda: {copy.stem: {"kind": "style", "base": "glyph"}})
    assert shipped_facts(copy) is not None
    for damaged in (b"", copy.read_bytes()[:100], b"\x02" + bytes(7) + b"{}", b"\x02" + bytes(7) + b"[]"):
        copy.write_bytes(damaged)
        assert shipped_facts(copy) is None


def test_an_app_that_has_ended_takes_nothing_in(app: App) -> None:
    app.stop()
    app.show_shipped()


def test_a_first_gallery_needs_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from loracomp.app.settings import Settings\n"
        "from loracomp.app.state import App\n"
        f"app = App(Settings(data=Path({str(tmp_path / 'data')!r})))\n"
        "for _ in range(2): app.library.note_shipped()\n"
        "rows = app.library.page().rows\n"
        "print(len(rows), all(row.thumbnail for row in rows), 'torch' in sys.modules)\n"
        "print(app.library.scan()); app.stop()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == [f"{len(list(cards()))} True False", "0"]
