"""Compose as a person uses it: pick, mix, be advised, draw."""

from __future__ import annotations

from pathlib import Path

import pytest
from webpage import PATIENCE_MS, Ask, Open, drawn, names, newest, pick, settings, tile, until

from loracomp.app.library import SHIPPED

DRAWING = Path(__file__).parents[3] / "examples" / "styles" / "mono" / "000-bathtub.png"
LONG_MS = 3 * PATIENCE_MS
"""The index is built when it is first asked for."""


def test_find_alike_shows_what_does_the_same_to_the_weights(visit: Open) -> None:
    """The first test on purpose: the index is built while the base is still being opened."""
    page = visit()
    pick(page, "mono")
    page.get_by_role("button", name="Find adapters like mono").click()
    page.get_by_role("button", name="Show all adapters again").wait_for(timeout=LONG_MS)
    found = until(lambda: "mono" not in (shown := names(page)) and shown)
    assert sorted([*found, "mono"]) == sorted(path.stem for path in SHIPPED.glob("*.safetensors"))
    assert set(found[:3]) == {"blobs", "fluent", "pixel"}, "a style is like the other styles"
    page.get_by_role("button", name="Show all adapters again").click()
    tile(page, "mono").wait_for()


def test_two_presses_give_a_newcomer_a_picture(visit: Open, asked: Ask) -> None:
    page = visit()
    tile(page, "watermelon").click()
    page.wait_for_function("document.querySelector('#prompt textarea').value.includes('watermelon')")
    page.get_by_role("button", name="Generate").click()
    picture = drawn(page)
    assert picture.evaluate("image => image.complete && image.naturalWidth") == 128
    request = newest(asked)["request"]
    assert request["prompt"] == "a watermelon emoji"
    assert [use["weight"] for use in request["adapters"]] == [1.0]


def test_quick_picks_are_all_kept(visit: Open) -> None:
    page = visit()
    wanted = ["watermelon", "mono", "bicycle"]
    page.evaluate(
        """names => names.forEach(name =>
            document.querySelector(`#shelf [data-act=pick][aria-label^="${name},"]`).click())""",
        wanted,
    )
    page.locator("#picks .lc-pick").nth(2).wait_for()
    assert page.locator("#picks .lc-pick strong").all_inner_texts() == wanted


def test_what_the_cards_show_is_what_is_drawn(visit: Open, asked: Ask) -> None:
    page = visit()
    pick(page, "bicycle", "mono")
    slider = page.get_by_role("slider", name="Weight of bicycle")
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    box = page.get_by_role("spinbutton", name="Weight of mono as a number")
    box.fill("-0.5")
    box.press("Tab")
    page.locator("#picks summary").first.click()
    page.get_by_role("combobox", name="Strength of bicycle over the run").select_option("fade out")
    page.get_by_role("slider", name="Point 1 of 2").focus()
    page.keyboard.press("ArrowUp")
    page.get_by_role("slider", name="Point 2 of 2").focus()
    page.keyboard.press("ArrowLeft")
    settings(page, 2, seed=11)
    page.get_by_role("button", name="Generate").click()
    drawn(page)
    request = newest(asked)["request"]
    bicycle, mono = request["adapters"]
    assert (request["seed"], request["steps"]) == (11, 2)
    assert mono["weight"] == -0.5 and mono["curve"] is None
    assert bicycle["weight"] == pytest.approx(0.85)
    assert bicycle["curve"]["points"] == [[0.4, pytest.approx(0.85)], [0.95, 0.0]]


def test_words_go_into_the_prompt_once(visit: Open) -> None:
    page = visit()
    prompt = page.locator("#prompt textarea")
    prompt.fill("a quiet house")
    pick(page, "pixel")
    word = page.get_by_role("button", name="+ pixel art style")
    word.click()
    page.wait_for_function("document.querySelector('#prompt textarea').value.endsWith('pixel art style')")
    word.click()
    # Presses are answered in turn: a word of another adapter comes after what this one did.
    tile(page, "mono").click()
    page.get_by_role("button", name="+ mono style").click()
    page.wait_for_function("document.querySelector('#prompt textarea').value.endsWith('mono style')")
    assert prompt.input_value() == "a quiet house, pixel art style, mono style"


def test_search_narrows_and_says_when_nothing_fits(visit: Open) -> None:
    page = visit()
    search = page.get_by_label("Search").first
    search.press_sequentially("violin")
    page.wait_for_function("document.querySelectorAll('#shelf [data-act=pick]').length === 1")
    search.press_sequentially(" nonsense")
    page.get_by_text("Nothing fits").wait_for()


def test_an_error_stands_where_the_person_looks(visit: Open) -> None:
    page = visit()
    page.get_by_role("button", name="Generate").click()
    alert = page.locator("#compose-notice [role=alert]")
    alert.wait_for()
    assert "say what to draw" in alert.inner_text()
    page.get_by_role("button", name="Choose for me").click()
    alert.get_by_text("no prompt to choose by").wait_for()


def test_cancel_ends_within_a_step(visit: Open, asked: Ask) -> None:
    page = visit()
    pick(page, "violin")
    settings(page, 150)
    page.get_by_role("button", name="Generate").click()
    page.locator("#stage [data-state=running]").wait_for()
    page.wait_for_function("/step [1-9]/i.test(document.querySelector('#stage').innerText)")
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_text("Canceled; nothing was kept.").wait_for()
    job = asked("/jobs")[0]
    assert job["state"] == "canceled" and 0 < job["step"] < 150


def test_a_painted_mask_is_drawn_with(visit: Open, asked: Ask) -> None:
    page = visit()
    pick(page, "blobs")
    settings(page, 2)
    page.get_by_role("button", name="Paint where blobs acts").click()
    editor = page.locator("#mask-editor")
    # The painter takes strokes once it has laid down its ground, which can be undone from then on.
    until(editor.get_by_role("button", name="Undo").is_enabled)
    frame = editor.locator("canvas").first.bounding_box()
    x, y = frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2
    page.mouse.move(x - 40, y)
    page.mouse.down()
    page.mouse.move(x + 40, y, steps=2)
    page.mouse.up()
    page.get_by_role("button", name="Use this mask").click()
    page.get_by_text("Where: painted").wait_for()
    page.get_by_role("button", name="Generate").click()
    drawn(page)
    assert len(newest(asked)["request"]["adapters"][0]["mask"]) > 100


def test_a_picture_finds_the_adapter_that_draws_such(visit: Open) -> None:
    page = visit()
    page.locator("#filters button").first.click()
    page.locator("#by-picture input[type=file]").set_input_files(DRAWING)
    said = page.locator("#find-notice").get_by_text("the picture was searched for by the words")
    said.wait_for(timeout=LONG_MS)
    assert "a bathtub emoji, mono style" in said.inner_text()
    until(lambda: names(page)[:1] == ["mono"])


def test_the_app_chooses_for_a_prompt_and_says_why(visit: Open, asked: Ask) -> None:
    page = visit()
    page.locator("#prompt textarea").fill("a watermelon in mono style")
    page.get_by_role("button", name="Choose for me").click()
    why = page.locator("#why [role=status]")
    why.wait_for(timeout=LONG_MS)
    page.locator("#picks .lc-pick").nth(1).wait_for()
    method = page.get_by_label("Method", exact=True)
    until(lambda: f"method {method.input_value()}: " in why.inner_text())
    weights = page.locator("#picks input[type=number]")
    shown = {
        name: weights.nth(number).input_value()
        for number, name in enumerate(page.locator("#picks .lc-pick strong").all_inner_texts())
    }
    assert shown.keys() == {"watermelon", "mono"}
    for name, weight in shown.items():
        assert f"{name}, weight {float(weight):g} (" in why.inner_text()
    settings(page, 2)
    page.get_by_role("button", name="Generate").click()
    drawn(page)
    picture = newest(asked)
    assert picture["request"]["method"] == method.input_value()
    uses = {use["name"]: use["weight"] for use in picture["recipe"]["uses"]}
    assert uses == pytest.approx({name: float(weight) for name, weight in shown.items()})


def test_the_diagnosis_names_a_method_and_its_reason(visit: Open, asked: Ask) -> None:
    page = visit()
    pick(page, "mono", "pixel")
    page.get_by_role("button", name="How do these adapters go together?").click()
    report = page.locator("#diagnosis [role=status]")
    report.wait_for()
    ids = [{"id": card.get_attribute("data-id")} for card in page.locator("#picks .lc-pick").all()]
    known = asked("/diagnose", {"adapters": ids})
    assert f"Take {known['advice']['method']}: {known['advice']['reason']}" in report.inner_text()
    report.get_by_text("The figures").click()
    rows = [row.locator("td").all_inner_texts() for row in report.locator("tbody tr").all()]
    assert [row[1] for row in rows] == [*(block["name"] for block in known["blocks"]), known["whole"]["name"]]
    assert {row[0] for row in rows} == {"mono + pixel"}
    assert rows[-1][2] == f"{known['whole']['cosines'][0]:.2f}"
