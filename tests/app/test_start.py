"""Starting the app: refusals, and one app per folder."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from loracomp.app.page_import import import_gradio
from loracomp.app.server import serve
from loracomp.app.settings import Settings
from loracomp.app.state import App
from loracomp.errors import FormatError, UsageError


def test_hosts_that_others_reach_are_refused_without_a_token(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loracomp", "app", "--host", "0.0.0.0", "--data", str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "needs a token" in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_folder_serves_one_app_at_a_time(settings: Settings) -> None:
    first = App(settings)
    with pytest.raises(UsageError, match="another app is using this folder"):
        App(settings)
    first.stop()
    App(settings).stop()


def test_a_port_that_is_taken_is_told_of(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = settings.model_copy(update={"port": taken.getsockname()[1]})
        with pytest.raises(UsageError, match="choose another --port"):
            serve(busy, print)


def test_a_damaged_database_is_told_of(settings: Settings) -> None:
    settings.folder("previews")
    settings.database.write_bytes(b"no database at all, but long enough to be read as one" * 50)
    with pytest.raises(FormatError, match="move it away"):
        App(settings)


def test_an_app_imports_nothing_heavy_before_it_is_asked() -> None:
    script = (
        "import sys; from loracomp.app.state import App; import loracomp.app.server; "
        "print(sorted({'torch', 'diffusers', 'gradio', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_gradio_is_imported_as_it_is_without_its_stubs() -> None:
    import inspect

    before = inspect.getfile
    gradio = import_gradio()
    assert inspect.getfile is before
    assert inspect.getfile(gradio.Textbox).endswith("textbox.py")
