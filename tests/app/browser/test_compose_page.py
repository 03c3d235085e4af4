"""Compose, Compare, History and Jobs as a person uses them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Open = Callable[..., Any]
Ask = Callable[[str], Any]


def newest(asked: Ask) -> dict[str, Any]:
    """The picture that was drawn last."""
    found: dict[str, Any] = asked("/history")["rows"][0]
    return found


def tile(page: Any, name: str) -> Any:
    """The adapter's tile in the gallery."""
    return page.locator("#shelf").get_by_role("button", name=f"{name},")


def pick(page: Any, *names: str) -> None:
    """Picks adapters by looking."""
    for number, name in enumerate(names):
        tile(page, name).click()
        page.locator("#picks .lc-pick").nth(number).wait_for()


def settings(page: Any, steps: int, seed: int | None = None) -> None:
    """Few steps, and a seed that stays."""
    page.locator("#settings button").first.click()
    page.get_by_label("Steps").fill(str(steps))
    if seed is not None:
        page.get_by_label("Seed", exact=True).fill(str(seed))
        page.get_by_label("Keep this seed").check()


def drawn(page: Any) -> Any:
    """Waits for the picture of Compose."""
    page.locator("#stage [data-state=done] img").first.wait_for()
    return page.locator("#stage img").first


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
    names = ("watermelon", "mono", "bicycle")
    page.evaluate(
        """names => names.forEach(name =>
            document.querySelector(`#shelf [data-act=pick][aria-label^="${name},"]`).click())""",
        names,
    )
    page.locator("#picks .lc-pick").nth(2).wait_for()
    assert [name for name in names if page.locator("#picks").get_by_text(name, exact=True).count()] == [
        *names
    ]


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
    settings(page, 3, seed=11)
    page.get_by_role("button", name="Generate").click()
    drawn(page)
    request = newest(asked)["request"]
    bicycle, mono = request["adapters"]
    assert (request["seed"], request["steps"]) == (11, 3)
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
    page.wait_for_timeout(500)
    assert prompt.input_value() == "a quiet house, pixel art style"


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
    page.get_by_role("button", name="Paint where blobs acts").click()
    canvas = page.locator("#mask-editor canvas").first
    canvas.wait_for()
    page.wait_for_timeout(800)
    frame = canvas.bounding_box()
    x, y = frame["x"] + frame["width"] / 2, frame["y"] + frame["height"] / 2
    page.mouse.move(x - 40, y)
    page.mouse.down()
    page.mouse.move(x + 40, y, steps=8)
    page.mouse.up()
    page.get_by_role("button", name="Use this mask").click()
    page.get_by_text("Where: painted").wait_for()
    settings(page, 2)
    page.get_by_role("button", name="Generate").click()
    drawn(page)
    assert len(newest(asked)["request"]["adapters"][0]["mask"]) > 100


def test_every_cell_of_a_grid_has_its_own_setting(visit: Open, asked: Ask) -> None:
    page = visit()
    pick(page, "watermelon")
    settings(page, 3, seed=5)
    page.get_by_role("tab", name="Compare").click()
    page.get_by_label("Values, columns").fill("0, 1")
    page.get_by_role("button", name="Draw the grid").click()
    page.locator("#grid [data-state=done]").wait_for()
    assert page.locator("#grid th").all_inner_texts() == ["weight 0.0", "weight 1.0"]
    cells = [node.get_attribute("data-id") for node in page.locator("#grid .lc-cell").all()]
    shown = [asked(f"/history/{id_}") for id_ in cells]
    assert [one["request"]["adapters"][0]["weight"] for one in shown] == [0.0, 1.0]
    page.locator("#grid .lc-cell").nth(1).click()
    page.locator("#pair img").first.wait_for()
    assert page.locator("#pair img").count() == 2


def test_a_press_restores_a_picture(visit: Open, asked: Ask) -> None:
    page = visit()
    pick(page, "light-bulb")
    settings(page, 2, seed=77)
    page.get_by_role("button", name="Generate").click()
    drawn(page)
    before = newest(asked)
    fresh = visit()
    fresh.get_by_role("tab", name="History").click()
    fresh.locator("#history-gallery .lc-tile").first.click()
    fresh.get_by_role("button", name="Restore settings").click()
    fresh.get_by_text("Generate draws the same picture").wait_for()
    fresh.get_by_role("button", name="Generate").click()
    drawn(fresh)
    again = newest(asked)
    assert again["id"] != before["id"]
    assert again["recipe"] == before["recipe"]


def test_a_dropped_picture_restores_its_settings(visit: Open, asked: Ask, tmp_path: Path) -> None:
    page = visit()
    pick(page, "fluent")
    settings(page, 2, seed=78)
    page.get_by_role("button", name="Generate").click()
    drawn(page)
    file = tmp_path / "mine.png"
    file.write_bytes(asked(f"/history/{newest(asked)['id']}/image"))
    fresh = visit()
    fresh.get_by_role("tab", name="History").click()
    fresh.locator("#history-drop input[type=file]").set_input_files(file)
    fresh.get_by_text("Generate draws the same picture").wait_for()
    fresh.locator("#picks").get_by_text("fluent", exact=True).wait_for()
    fresh.locator("#settings button").first.click()
    assert fresh.get_by_label("Seed", exact=True).input_value() == "78"


def test_a_recipe_is_kept_and_used(visit: Open) -> None:
    page = visit()
    pick(page, "mono", "violin")
    page.get_by_role("tab", name="History").click()
    page.get_by_label("Name").fill("Ink violins")
    page.get_by_role("button", name="Save recipe").click()
    page.get_by_text("Saved Ink violins.").wait_for()
    fresh = visit()
    fresh.get_by_role("tab", name="History").click()
    fresh.get_by_role("button", name="Use Ink violins").click()
    fresh.locator("#picks .lc-pick").nth(1).wait_for()
    assert fresh.get_by_label("Prompt").input_value() == "a violin emoji, mono style"
