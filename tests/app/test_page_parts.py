"""What the page is made of, without a browser: escaping, picks, examples, axes, masks, what is restored."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the app's packages are missing: pip install 'loracomp[app]'")

from PIL import Image

from loracomp.app.adapter_rows import AdapterRow
from loracomp.app.requests import AdapterUse, Curve, GenerateRequest
from loracomp.app.state import App
from loracomp.app.ui import axes, chart, masks, restoring
from loracomp.app.ui.examples import example
from loracomp.app.ui.form import Values, request_of
from loracomp.app.ui.markup import button, node, notice
from loracomp.app.ui.picks import checked, curve, pick, with_word
from loracomp.app.ui.session import asked, checked_request, told
from loracomp.errors import UsageError

BAD = "<img src=x onerror=alert(1)>${alert(1)}\"'`"


def row(name: str, kind: str = "subject", trigger: str = "", base: str = "glyph") -> AdapterRow:
    """An adapter of a library."""
    return AdapterRow(
        name,
        name,
        base,
        kind,
        "",
        (trigger,) if trigger else (),
        (),
        4,
        1,
        1.0,
        -1.0,
        2.0,
        None,
        True,
        "",
        0.0,
    )


def test_no_text_becomes_markup() -> None:
    shown = str(node("p", BAD, title=BAD)) + str(button(BAD, BAD, data_id=BAD)) + str(notice(BAD, "error"))
    assert "<img" not in shown
    assert 'title="&lt;img src=x onerror=alert(1)&gt;${alert(1)}&quot;&#x27;`"' in shown


def test_errors_of_ours_are_told_and_others_are_not() -> None:
    assert "write 0.8 &lt;b&gt;" in told(UsageError("write 0.8 <b>"))
    assert "secret" not in told(RuntimeError("secret"))


def test_picks_from_a_browser_are_checked() -> None:
    good = pick(row("violin"))
    assert checked([good, {"weight": 1}, "nonsense", None]) == [good]
    assert checked("nonsense") == []
    for weight in (None, "1", float("nan"), float("inf")):
        with pytest.raises(UsageError, match="no number"):
            checked([good | {"weight": weight}])


def test_a_curve_is_points_times_the_weight() -> None:
    entry = pick(row("violin"), 0.5) | {"points": [[0, 0], [0.5, 1]]}
    assert curve(entry) == {"points": [(0.0, 0.0), (0.5, 0.5)], "axis": "run", "shape": "linear"}
    assert curve(entry | {"points": None}) is None
    with pytest.raises(UsageError, match="damaged"):
        curve(entry | {"points": [["a", 1]]})


def test_words_are_added_once() -> None:
    assert with_word("", "mono style") == "mono style"
    assert with_word("a cat, ", "mono style") == "a cat, mono style"
    assert with_word("a cat in Mono Style", "mono style") == "a cat in Mono Style"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row("w", trigger="watermelon"), row("m", "style", "mono style")], "a watermelon emoji, mono style"),
        ([row("m", "style", "mono style")], "an apple emoji, mono style"),
        ([row("o", "", "orange cat", "sdxl")], "an orange cat"),
        ([row("f", "accelerator")], "an apple emoji"),
    ],
)
def test_example_prompts(rows: list[AdapterRow], expected: str) -> None:
    assert example(rows) == expected


def test_axes_read_what_people_type(app: App) -> None:
    read = axes.axis(app.library, "Columns", "seed", "1..3, 7", "")
    assert read is not None and read.values == (1, 2, 3, 7)
    read = axes.axis(app.library, "Columns", "weight", "-0.5, 1", "some")
    assert read is not None and (read.values, read.adapter) == ((-0.5, 1.0), "some")
    read = axes.axis(app.library, "Rows", "prompt", "a cat, black | a dog", "")
    assert read is not None and read.values == ("a cat, black", "a dog")
    assert axes.axis(app.library, "Rows", axes.NOTHING, "1", "") is None
    with pytest.raises(UsageError, match="Columns: no values"):
        axes.axis(app.library, "Columns", "weight", " , ", "")
    with pytest.raises(UsageError, match="no number"):
        axes.axis(app.library, "Columns", "steps", "many", "")


def test_a_painted_mask_is_white_where_it_was_painted() -> None:
    layer = Image.new("RGBA", (masks.SIDE, masks.SIDE), (0, 0, 0, 0))
    assert masks.painted({"layers": [layer]}) == "" == masks.painted(None)
    layer.paste((15, 118, 110, 255), (0, 0, 128, masks.SIDE))
    made = Image.open(io.BytesIO(base64.b64decode(masks.painted({"layers": [layer]}))))
    assert (made.getpixel((10, 10)), made.getpixel((200, 10))) == (255, 0)


def values(**changes: Any) -> Values:
    """What the form holds, with changes."""
    plain: dict[str, Any] = {
        "prompt": "a cat", "negative": "", "picks": [], "masks": {}, "method": "merge", "steps": 0,
        "guidance": 0, "scheduler": "the model's own", "seed": 5, "lock": True, "batch": 1, "width": 0,
        "height": 0, "example": "", "rest": {},
    }  # fmt: skip
    return Values(**(plain | changes))


def test_zero_is_the_models_own_and_an_unlocked_seed_changes() -> None:
    request = asked(request_of(values()))
    assert (request.steps, request.guidance, request.width, request.seed) == (None, None, None, 5)
    assert len({asked(request_of(values(lock=False))).seed for _ in range(4)}) > 1
    with pytest.raises(UsageError, match="say what to draw"):
        asked(request_of(values(prompt=" ")))


def test_wrong_fields_are_named() -> None:
    with pytest.raises(UsageError, match=r"^steps: "):
        checked_request(GenerateRequest, {"prompt": "a cat", "steps": -1})
    with pytest.raises(UsageError, match=r"^choose$"):
        checked_request(GenerateRequest, {"steps": 1}, {"prompt": "choose"})


def test_what_is_restored_asks_for_the_same(app: App, tmp_path: Path) -> None:
    app.library.scan()
    ids = [app.library.by_name(name).id for name in ("violin", "mono", "watermelon")]
    uses = (
        AdapterUse(id=ids[0], weight=0.5, curve=Curve(points=((0.0, 0.0), (0.5, 0.8)))),
        AdapterUse(id=ids[1], weight=-0.5, settings="up=0.5"),
        AdapterUse(id=ids[2], weight=1.0, curve=Curve(points=((2.0, 1.0),), axis="step", shape="constant")),
    )
    before = GenerateRequest(
        prompt="a violin", adapters=uses, steps=7, guidance=0.0, seed=9, batch=2, width=128, height=64,
        options={"period": 0.1}, guidance_rescale=0.3, method="switch",
    )  # fmt: skip
    after = asked(request_of(restoring.values_of(app, before)))
    assert after.model_dump(exclude={"adapters"}) == before.model_dump(exclude={"adapters"})
    assert [use.curve for use in after.adapters] == [use.curve for use in before.adapters]
    assert [use.settings for use in after.adapters] == ["", "up=0.5", ""]
    changed = restoring.values_of(app, before)
    changed.picks[1]["weight"] = 0.1
    assert asked(request_of(changed)).options == {}


def test_the_loss_curve_says_in_words_where_it_stands() -> None:
    shown = chart.losses([(1, 0.5), (2, 0.25)], 10)
    assert "loss 0.2500 at step 2 of 10" in shown and "<polyline" in shown
    assert "No loss yet" in chart.losses([], 10)
