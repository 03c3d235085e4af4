"""The tab Watermark: keys, marking, and reports as a person reads them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr

from loracomp.app.mark_reports import MarkReport
from loracomp.app.marks import AttributeRequest, MarkRequest, VerifyRequest
from loracomp.app.ui.markup import Markup, bullets, button, empty, facts, join, node, notice
from loracomp.app.ui.panel import data_of, panel, plain
from loracomp.app.ui.session import checked_request, telling, user_of

QUIET: dict[str, Any] = {"show_progress": "hidden"}
NO_REPORT = empty(
    "No report yet",
    "Drop pictures, choose the key of the LoRA in question, and press Verify; the more the surer.",
)
GOOD = ("verified", "named", "valid")


class Watermark:
    """The tab.

    Args:
        app: What is running.
        tabs: To go to Jobs, where marking is watched.
    """

    def __init__(self, app: Any, tabs: Any) -> None:
        self.app, self.tabs = app, tabs
        self.missing = plain(id="mark-missing")
        with gr.Row(elem_classes="lc-columns"):
            with gr.Column(scale=4, min_width=300):
                self._keys()
                self._mark()
            with gr.Column(scale=4, min_width=300):
                self._verify()
            with gr.Column(scale=5, min_width=300):
                plain("<h2>Report</h2>", id="report-title")
                self.report = plain(NO_REPORT, id="mark-report")
                self.download = gr.DownloadButton(
                    "Download the report (JSON)", visible=False, elem_id="report-json"
                )
        self._connect()

    def _keys(self) -> None:
        plain("<h2>Your keys</h2>", id="keys-title")
        self.keys_said = plain(id="keys-notice")
        self.keys = panel(key_list([]), id="keys")
        with gr.Row(equal_height=True, elem_classes="lc-actions"):
            self.lora = gr.Textbox(
                label="Key for the LoRA",
                placeholder="my-style",
                elem_id="key-lora",
                min_width=120,
                max_lines=1,
            )
            self.recipient = gr.Textbox(
                label="Copy for", placeholder="whom, or empty", elem_id="key-for", min_width=120, max_lines=1
            )
        self.issue = gr.Button("Issue the key", elem_id="key-issue")
        self.key_file = gr.File(label="Bring a key file", height=130, elem_id="key-file")

    def _mark(self) -> None:
        plain("<h2>Mark an adapter</h2>", id="mark-title")
        self.source = gr.Dropdown([], label="Adapter; it stays as it is", elem_id="mark-source")
        self.mark_key = gr.Dropdown([], label="Key", elem_id="mark-key", filterable=False)
        self.mark_name = gr.Textbox(
            label="Name of the marked one", placeholder="my-style-marked", elem_id="mark-name", max_lines=1
        )
        self.mark = gr.Button("Mark", elem_id="mark")
        self.mark_said = plain(id="mark-notice")

    def _verify(self) -> None:
        plain("<h2>Who drew these pictures?</h2>", id="verify-title")
        self.files = gr.File(
            label="Pictures", file_count="multiple", file_types=["image"], height=170, elem_id="verify-files"
        )
        self.key = gr.Dropdown([], label="Key", elem_id="verify-key", filterable=False)
        self.adapter = gr.Dropdown(
            [("not at hand", "")], value="", label="The LoRA itself, if at hand", elem_id="verify-adapter"
        )
        with gr.Row(elem_classes="lc-actions"):
            self.verify = gr.Button("Verify", variant="primary", elem_id="verify", min_width=110)
            self.attribute = gr.Button("Ask all my keys", elem_id="attribute", min_width=130)
        self.inspect = gr.Button("Check the LoRA's manifest", size="sm", elem_id="inspect")
        self.verify_said = plain(id="verify-notice")

    def shown(self) -> dict[str, Any]:
        """The event that draws the tab."""

        def load(request: gr.Request) -> tuple[Any, ...]:
            user = user_of(request)
            rows = self.app.library.page(size=200, usable=True).rows
            named = [(row.name, row.id) for row in rows]
            own = gr.update(choices=named)
            # A slow answer must not undo a key that was issued meanwhile.
            keys = self._listed(user) if self.app.marks.keys.list(user) else [gr.skip()] * 3
            return *keys, own, gr.update(choices=[("not at hand", ""), *named])

        outputs = [self.keys, self.mark_key, self.key, self.source, self.adapter]
        return {"fn": load, "outputs": outputs, **QUIET}

    def checked(self) -> dict[str, Any]:
        """The event that says what cannot be done here; apart, for it opens the codec."""
        return {"fn": self._missing, "outputs": self.missing, **QUIET}

    def _missing(self) -> Any:
        """Why something cannot be done here; nothing is claimed while torch is on its way."""
        if self.app.engine_state()["state"] == "loading":
            return gr.skip()
        said = dict.fromkeys(self.app.marks.available().values())
        return join(notice(line, "warning") for line in said)

    def _listed(self, user: str) -> tuple[Any, ...]:
        keys = self.app.marks.keys.list(user)
        named = [(_called(key), key.id) for key in keys if key.kind == "issued"]
        newest = named[-1][1] if named else None
        # Gradio takes an update apart, so each list gets one of its own.
        lists = (gr.update(choices=named, value=newest) for _ in range(2))
        return key_list(keys), *lists

    def _connect(self) -> None:
        listed = [self.keys, self.mark_key, self.key]

        @telling(4)
        def issue(lora: str, recipient: str, request: gr.Request) -> tuple[Any, ...]:
            user, keys = user_of(request), self.app.marks.keys
            if not any(key.kind == "owner" for key in keys.list(user)):
                keys.create(user)
            made = keys.issue(lora, user, recipient)
            return *self._listed(user), notice(
                f"The key of {_called(made)} is there; keep a backup of it.", "good"
            )

        self.issue.click(issue, [self.lora, self.recipient], [*listed, self.keys_said])

        @telling(4)
        def act(event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
            user, data = user_of(request), data_of(event)
            if data.get("act") == "remove":
                self.app.marks.keys.remove(str(data.get("id")), user)
            return *self._listed(user), Markup("")

        self.keys.click(act, outputs=[*listed, self.keys_said], trigger_mode="multiple", **QUIET)

        @telling(4)
        def take(path: str | None, request: gr.Request) -> tuple[Any, ...]:
            user = user_of(request)
            if not path:
                return *self._listed(user), Markup("")
            sent = self.app.uploads.take(Path(path), "key", user)
            made = self.app.marks.keys.take(sent.id, user)
            return *self._listed(user), notice(f"{_called(made)} is in your list.", "good")

        self.key_file.upload(take, self.key_file, [*listed, self.keys_said])

        @telling(1)
        def mark(adapter: str | None, key: str | None, name: str, request: gr.Request) -> Markup:
            hints = {
                "adapter": "choose an adapter",
                "key": "issue or choose a key",
                "name": "give it a plain name",
            }
            values = {"adapter": adapter, "key": key, "name": name.strip()}
            self.app.marks.submit(checked_request(MarkRequest, values, hints), user_of(request))
            return notice("Marking has begun; see Jobs. The marked adapter shows up in the library.", "good")

        self.mark.click(mark, [self.source, self.mark_key, self.mark_name], self.mark_said)
        self._connect_reports()

    def _connect_reports(self) -> None:
        outputs = [self.report, self.download, self.verify_said]

        def sent(files: list[str] | None, user: str) -> list[str]:
            return [self.app.uploads.take(Path(path), "picture", user).id for path in files or []]

        @telling(3)
        def verify(
            files: list[str] | None, key: str | None, adapter: str, request: gr.Request
        ) -> tuple[Any, ...]:
            user = user_of(request)
            hints = {"key": "choose the key of the LoRA in question; issue one on the left"}
            values = {"key": key, "uploads": sent(files, user), "adapter": adapter or ""}
            return *told(self.app.marks.verify(checked_request(VerifyRequest, values, hints), user)), Markup(
                ""
            )

        self.verify.click(verify, [self.files, self.key, self.adapter], outputs)

        @telling(3)
        def attribute(files: list[str] | None, request: gr.Request) -> tuple[Any, ...]:
            user = user_of(request)
            values = {"uploads": sent(files, user)}
            return *told(self.app.marks.attribute(checked_request(AttributeRequest, values), user)), Markup(
                ""
            )

        self.attribute.click(attribute, self.files, outputs)

        @telling(3)
        def inspect(adapter: str, key: str | None, request: gr.Request) -> tuple[Any, ...]:
            if not adapter:
                return (
                    gr.skip(),
                    gr.skip(),
                    notice("Choose the LoRA whose manifest is to be checked.", "error"),
                )
            return *told(self.app.marks.inspect(adapter, user_of(request), key or "")), Markup("")

        self.inspect.click(inspect, [self.adapter, self.key], outputs)


def told(report: MarkReport) -> tuple[Markup, Any]:
    """A report in words, and its file."""
    path = Path(tempfile.mkdtemp(prefix="report-")) / "report.json"
    path.write_text(json.dumps(report.to_dict(), indent=1, default=str), encoding="utf-8")
    return shown(report), gr.update(value=str(path), visible=True)


def shown(report: MarkReport) -> Markup:
    """A report: the outcome, what follows, what does not, how sure it is; then the figures."""
    kind = "good" if report.outcome in GOOD else "info"
    head = node("div", node("strong", report.headline), cls=f"lc-notice lc-{kind}", role="status")
    parts = [
        head,
        node("h3", "What this shows"), node("p", report.proves),
        node("h3", "What it does not show"), node("p", report.limits),
        node("h3", "How sure it is"), node("p", report.sure),
        node("h3", "Figures"), facts(report.facts),
    ]  # fmt: skip
    if report.notes:
        parts += [node("h3", "Notes"), bullets(report.notes)]
    return node("article", join(parts), cls="lc-report", data_outcome=report.outcome)


def key_list(keys: list[Any]) -> Markup:
    """The keys; each can be saved and removed."""
    if not keys:
        return empty("No keys yet", "Name a LoRA below and issue its key; your owner's key is made with it.")
    items = [
        node(
            "li",
            node("span", _called(key), cls="lc-grow"),
            node(
                "a",
                "Back up",
                href=f"/api/v1/keys/{key.id}/file",
                download=True,
                aria_label=f"Back up {_called(key)}",
            ),
            button("Remove", "remove", cls="lc-small", data_id=key.id, aria_label=f"Remove {_called(key)}"),
            cls="lc-row",
        )
        for key in keys
    ]
    return node("ul", *items, cls="lc-rows")


def _called(key: Any) -> str:
    if key.kind == "owner":
        return "owner's key"
    return f"{key.lora}, copy for {key.recipient}" if key.recipient else str(key.lora)
