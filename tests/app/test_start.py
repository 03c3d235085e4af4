"""Starting the app: refusals, and one app per folder."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from loops import finished

from loracomp.app.server import listen, serve
from loracomp.app.settings import Settings
from loracomp.app.state import App
from loracomp.errors import FormatError, ResourceError, UsageError


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


def test_a_missing_gradio_is_told_of(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="pip install"):
        serve(settings, print)


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


def test_gradio_is_whole_though_parts_of_its_import_are_left_out() -> None:
    script = (
        "import inspect, sys, jinja2; before = inspect.getfile, jinja2.Template.__new__;"
        "from loracomp.app.page_import import import_gradio; gradio = import_gradio();"
        "print('pandas' in sys.modules);"
        "print((inspect.getfile, jinja2.Template.__new__) == before);"
        "print(inspect.getfile(gradio.Textbox).rpartition('/')[2], jinja2.Template('{{ a }}').render(a=1));"
        "from gradio.cli import cli; print(callable(cli));"
        "print(list(gradio.Dataframe(value=[[1, 2]], headers=['a', 'b']).value['data'][0]));"
        "import pandas; print(type(pandas.DataFrame).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == ["False", "True", "textbox.py 1", "True", "[1, 2]", "type"]


def test_whoever_needs_the_base_waits_until_it_is_open_or_cannot_be(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def refused(*values: Any, **named: Any) -> None:
        done.append("opened")
        raise ResourceError("no such base")

    monkeypatch.setattr("loracomp.loading.open_base", refused)
    app.engine.settle()
    app.engine.start(lambda: done.append("looked"))
    app.engine.settle()
    assert done == ["looked", "opened"]
    assert (app.engine_state()["state"], app.engine_state()["error"]) == ("error", "no such base")


def test_a_page_makes_no_server_before_it_is_mounted() -> None:
    script = (
        "import gradio; from gradio.routes import App; from loracomp.app.page_import import one_server\n"
        "with one_server(), gradio.Blocks(analytics_enabled=False) as page: gradio.Button()\n"
        "print(page.app, gradio.blocks.App is App)\n"
        "with gradio.Blocks(analytics_enabled=False) as other: gradio.Button()\n"
        "print(isinstance(other.app, App))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == ["None True", "True"]


def test_answers_leave_at_once_instead_of_waiting_for_the_one_before(settings: Settings) -> None:
    """Without this, each file of the page waits 40 ms for the browser's acknowledgment of its header."""

    async def accepted() -> Any:
        found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def came(reader: Any, writer: Any) -> None:
            taken = writer.get_extra_info("socket")
            found.set_result(taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listening = listen(settings.model_copy(update={"port": 0}))
        async with await asyncio.start_server(came, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname())
            try:
                return await asyncio.wait_for(found, 20)
            finally:
                writer.close()

    assert finished(accepted())


def test_models_and_clients_that_were_made_in_passing_work() -> None:
    script = (
        "import gc, ssl, pydantic; from loracomp.app.page_import import import_gradio, lean\n"
        "with lean():\n"
        "    class Model(pydantic.BaseModel):\n"
        "        number: int\n"
        "print(Model(number='1').number, gc.isenabled(), 'defer_build' in pydantic.BaseModel.model_config)\n"
        "import_gradio()\n"
        "found = [one for one in gc.get_objects() if isinstance(one, ssl.SSLContext)]\n"
        "bare = [one for one in found if not one.cert_store_stats()['x509_ca']]\n"
        "for one in found: one.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname='a')\n"
        "print(bool(bare), all(one.cert_store_stats()['x509_ca'] for one in found))\n"
        "print('load_verify_locations' in vars(ssl.SSLContext))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == ["1 True False", "True True", "False"]
