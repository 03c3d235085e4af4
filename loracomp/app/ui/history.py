"""The tab History: every image with its settings, and recipes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import gradio as gr

from loracomp.app.history import Picture, Restored
from loracomp.app.ui import restoring
from loracomp.app.ui.compose import Compose
from loracomp.app.ui.form import COUNT, Values, methods, request_of, schedulers
from loracomp.app.ui.markup import Markup, button, empty, facts, join, node, notice
from loracomp.app.ui.panel import data_of, panel, plain
from loracomp.app.ui.session import asked, telling, user_of
from loracomp.app.ui.sources import image, small

SIZE = 24
QUIET: dict[str, Any] = {"show_progress": "hidden"}


class History:
    """The tab and what it needs of the others.

    Args:
        app: What is running.
        made: Compose, where settings are restored to.
        tabs: To go there.
    """

    def __init__(self, app: Any, made: Compose, tabs: Any) -> None:
        self.app, self.made, self.form, self.tabs = app, made, made.form, tabs
        self.page, self.chosen = gr.State(1), gr.State("")
        with gr.Row(elem_classes="lc-columns"):
            with gr.Column(scale=6, min_width=300):
                plain("<h2>Your pictures</h2>", id="history-title")
                self.query = gr.Textbox(
                    label="Search", placeholder="words of the prompt", elem_id="history-find"
                )
                self.gallery = panel(id="history-gallery")
            with gr.Column(scale=4, min_width=300):
                self._side()
        self._connect()

    def _side(self) -> None:
        plain("<h2>Settings</h2>", id="history-settings-title")
        self.said = plain(id="history-notice")
        self.detail = panel(NOTHING, id="history-detail")
        self.dropped = gr.File(
            label="Restore from a picture that loracomp drew", file_types=[".png"], height=150,
            elem_id="history-drop",
        )  # fmt: skip
        plain("<h2>Recipes</h2>", id="recipes-title")
        plain(
            node(
                "p", "A recipe keeps what Compose holds now: adapters, weights and settings.", cls="lc-lead"
            ),
            id="recipes-lead",
        )
        self.recipes_said = plain(id="recipes-notice")
        self.recipes = panel(id="recipes")
        with gr.Row(equal_height=True, elem_classes="lc-actions"):
            self.name = gr.Textbox(
                label="Name", placeholder="my mixture", elem_id="recipe-name", min_width=140
            )
            self.save = gr.Button("Save recipe", elem_id="recipe-save", min_width=110, scale=0)
        self.file = gr.File(
            label="Import a recipe", file_types=[".json"], height=150, elem_id="recipe-import"
        )
        self.export = gr.DownloadButton("Download the recipe", visible=False, elem_id="recipe-export")

    def load(self, query: str, page: int, chosen: str, request: gr.Request) -> tuple[Markup, Markup]:
        """Gallery and recipes as they are."""
        user = user_of(request)
        found, total = self.app.history.list(user, query=query, page=page, size=SIZE)
        return gallery(found, total, page, chosen, bool(query)), recipe_list(self.app.recipes.list(user))

    def shown(self) -> dict[str, Any]:
        """The event that draws the tab."""
        inputs = [self.query, self.page, self.chosen]
        return {"fn": self.load, "inputs": inputs, "outputs": [self.gallery, self.recipes], **QUIET}

    def _connect(self) -> None:
        form = self.form
        self.query.input(lambda: 1, outputs=self.page, trigger_mode="always_last", **QUIET).then(
            **self.shown()
        )

        @telling(4)
        def press(page: int, chosen: str, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
            data = data_of(event)
            if data.get("act") == "page":
                return int(data.get("page", 1)), chosen, gr.skip(), Markup("")
            picture = self.app.history.get(str(data.get("id")), user_of(request))
            return page, picture.id, details(picture, self._names(picture)), Markup("")

        self.gallery.click(
            press, [self.page, self.chosen], [self.page, self.chosen, self.detail, self.said],
            trigger_mode="multiple", **QUIET,
        ).then(**self.shown())  # fmt: skip
        outputs = [*form.inputs(), self.tabs, self.made.none, self.made.said, self.detail, self.said]

        @telling(len(outputs))
        def act(event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
            data, user = data_of(event), user_of(request)
            if data.get("act") == "remove":
                self.app.history.remove(str(data.get("id")), user)
                return (*_skips(COUNT + 3), NOTHING, notice("Removed.", "good"))
            return self._fill(self.app.history.restore(str(data.get("id")), user))

        self.detail.click(act, outputs=outputs, trigger_mode="multiple", **QUIET).then(**self.shown())

        @telling(len(outputs))
        def drop(path: str | None, request: gr.Request) -> tuple[Any, ...]:
            if not path:
                return tuple(_skips(len(outputs)))
            user = user_of(request)
            sent = self.app.uploads.take(Path(path), "picture", user)
            return self._fill(self.app.restore_upload(sent.id, user))

        self.dropped.upload(drop, self.dropped, outputs, **QUIET)
        self._connect_recipes(outputs)

    def _connect_recipes(self, outputs: list[Any]) -> None:
        @telling(2)
        def save(request: gr.Request, name: str, *values: Any) -> tuple[Markup, Markup]:
            user = user_of(request)
            self.app.recipes.save(name, asked(request_of(Values(*values))), user)
            return recipe_list(self.app.recipes.list(user)), notice(f"Saved {name}.", "good")

        self.save.click(save, [self.name, *self.form.inputs()], [self.recipes, self.recipes_said], **QUIET)

        @telling(3)
        def act(event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
            data, user = data_of(event), user_of(request)
            if data.get("act") == "remove":
                self.app.recipes.remove(str(data.get("id")), user)
            file = gr.skip()
            if data.get("act") == "export":
                saved = self.app.recipes.get(str(data.get("id")), user)
                file = gr.update(
                    value=_file(saved.name, self.app.recipes.export(saved.id, user)), visible=True
                )
            return file, recipe_list(self.app.recipes.list(user)), Markup("")

        @telling(len(outputs))
        def use(event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
            data = data_of(event)
            if data.get("act") != "use":
                return tuple(_skips(len(outputs)))
            saved = self.app.recipes.get(str(data.get("id")), user_of(request))
            return self._fill(Restored(saved.request, 0, saved.missing, ()))

        self.recipes.click(
            act, outputs=[self.export, self.recipes, self.recipes_said], trigger_mode="multiple", **QUIET
        )
        self.recipes.click(use, outputs=outputs, trigger_mode="multiple", **QUIET)

        @telling(2)
        def take(path: str | None, request: gr.Request) -> tuple[Any, Markup]:
            if not path:
                return gr.skip(), Markup("")
            user = user_of(request)
            saved = self.app.recipes.take(Path(path).read_text(encoding="utf-8"), user)
            missing = f", without {', '.join(saved.missing)}, not in the library" if saved.missing else ""
            return recipe_list(self.app.recipes.list(user)), notice(
                f"Imported {saved.name}{missing}.", "good"
            )

        self.file.upload(take, self.file, [self.recipes, self.recipes_said], **QUIET)

    def _fill(self, found: Any) -> tuple[Any, ...]:
        """The form filled, Compose in front."""
        from loracomp.app.ui.mixing import no_picks

        values = restoring.values_of(self.app, found.request)
        lists = {
            "method": methods(self.app, values.method),
            "scheduler": schedulers(self.app, values.scheduler),
        }
        shown = [lists.get(name, getattr(values, name)) for name in values.__dataclass_fields__]
        told = restoring.told(found.missing, found.notes)
        return (*shown, gr.Tabs(selected="compose"), no_picks(values.picks), told, gr.skip(), Markup(""))

    def _names(self, picture: Picture) -> list[str]:
        return [f"{use['name'] or use['source']} {use['weight']:g}" for use in picture.recipe["uses"]]


NOTHING = empty("No picture chosen", "Press one to see its settings, restore them, or download it.")


def gallery(pictures: list[Picture], total: int, page: int, chosen: str, narrowed: bool) -> Markup:
    """A page of images."""
    if not pictures:
        if narrowed:
            return empty("Nothing found", "No prompt has these words.")
        return empty("No pictures yet", "Every picture that you draw is kept here with all its settings.")
    tiles = [
        node(
            "button",
            node("img", src=small(one.id), alt="", loading="lazy", width=256, height=256),
            node("span", one.prompt, cls="lc-sub"),
            type="button", data_act="show", data_id=one.id, cls="lc-tile", aria_label=one.prompt,
            aria_pressed="true" if one.id == chosen else "false",
        )
        for one in pictures
    ]  # fmt: skip
    from loracomp.app.ui.shelf import pager

    return join(
        [node("div", *tiles, cls="lc-gallery wide"), pager(page, -(-total // SIZE), total, "picture")]
    )


def details(picture: Picture, names: list[str]) -> Markup:
    """One image with its settings and what can be done with it."""
    recipe = picture.recipe
    step = 0 if len(recipe["programs"]) > 1 else picture.index
    pairs = [
        ("Prompt", picture.prompt), ("Avoid", recipe["negative"]), ("Adapters", ", ".join(names) or "none"),
        ("Method", recipe["method"]), ("Seed", recipe["seed"] + step),
        ("Steps", recipe["steps"]), ("Guidance", f"{recipe['guidance']:g}"), ("Model", recipe["base"]),
        ("Size", f"{picture.width} x {picture.height}"),
    ]  # fmt: skip
    source = image(picture.id)
    row = node(
        "div",
        button("Restore settings", "restore", data_id=picture.id),
        node("a", "Download", href=source, download=f"{picture.id}.png", cls="lc-button"),
        button("Remove", "remove", data_id=picture.id),
        cls="lc-row",
    )
    shown = node("figure", node("img", src=source, alt=picture.prompt), cls="lc-figure lc-modest")
    return node("div", shown, row, facts(pairs), cls="lc-stage")


def recipe_list(saved: list[Any]) -> Markup:
    """The recipes, each with what can be done with it."""
    if not saved:
        return empty("No recipes yet", "Name the mixture in Compose and save it here.")
    items = [
        node(
            "li",
            node("span", one.name, cls="lc-grow"),
            button("Use", "use", cls="lc-small", data_id=one.id, aria_label=f"Use {one.name}"),
            button("Export", "export", cls="lc-small", data_id=one.id, aria_label=f"Export {one.name}"),
            button("Remove", "remove", cls="lc-small", data_id=one.id, aria_label=f"Remove {one.name}"),
            cls="lc-row",
        )
        for one in saved
    ]
    return node("ul", *items, cls="lc-rows")


def _skips(count: int) -> list[Any]:
    return [gr.skip() for _ in range(count)]


def _file(name: str, text: str) -> str:
    """A file for download, named after the recipe."""
    stem = "".join(mark if mark.isalnum() or mark in "-_" else "-" for mark in name)[:60] or "recipe"
    path = Path(tempfile.mkdtemp(prefix="recipe-")) / f"{stem}.json"
    path.write_text(text, encoding="utf-8")
    return str(path)
