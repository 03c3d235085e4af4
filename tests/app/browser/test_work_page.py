"""Compare, History, Train, Watermark, Library, Jobs, and a restart in the middle of work."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from webpage import PATIENCE_MS, Ask, Open, choose, drawn, enter, newest, pick, settings, until

ROOT = Path(__file__).parents[3]


def test_every_cell_of_a_grid_has_its_own_setting(visit: Open, asked: Ask) -> None:
    page = visit()
    pick(page, "watermelon")
    settings(page, 2, seed=5)
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
    seed = fresh.get_by_label("Seed", exact=True)
    until(lambda: seed.input_value() == "78")


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
    prompt = fresh.get_by_label("Prompt")
    until(lambda: prompt.input_value() == "a violin emoji, mono style")


def train(page: Any, name: str, steps: int) -> None:
    """Starts a run on the drawings."""
    page.get_by_role("tab", name="Train").click()
    # The settings come to light while the captions are asked for.
    page.locator("#train-settings button").first.click()
    choose(page, "Training data", "drawings")
    page.locator("#captions li").first.wait_for()
    page.get_by_label("Samples per prompt").wait_for()
    fields = {
        page.locator("#train-name input, #train-name textarea").first: name,
        page.get_by_label("Trigger words"): "ink style",
        page.locator("#train-steps input"): str(steps),
        page.get_by_label("Batch"): "1",
        page.get_by_label("Rank", exact=True): "2",
        page.get_by_label("Sample prompts"): "a duck, ink style",
        page.get_by_label("Samples per prompt"): "1",
    }
    enter(fields)
    page.get_by_role("button", name="Start training").click()


# As on a slow machine: what Gradio does a frame later comes when a quick person has typed.
SLOW_FRAMES = (
    "() => { const soon = window.requestAnimationFrame.bind(window);"
    " window.requestAnimationFrame = (what) => setTimeout(() => soon(what), 500); }"
)
FRAMES = (
    "async () => { for (let n = 0; n < 5; n++) await new Promise((done) => requestAnimationFrame(done)); }"
)


def test_what_is_typed_as_fields_come_to_light_stays(visit: Open) -> None:
    page = visit()
    page.evaluate(SLOW_FRAMES)
    page.get_by_role("tab", name="Train").click()
    page.get_by_label("Trigger words").fill("ink style")
    page.locator("#train-settings button").first.click()
    page.locator("#train-steps input").fill("4")
    page.get_by_label("Sample prompts").fill("a duck")
    page.evaluate(FRAMES)
    assert page.get_by_label("Trigger words").input_value() == "ink style"
    assert page.locator("#train-steps input").input_value() == "4"
    assert page.get_by_label("Sample prompts").input_value() == "a duck"


def test_training_says_what_is_missing(visit: Open) -> None:
    page = visit()
    page.get_by_role("tab", name="Train").click()
    page.get_by_role("button", name="Start training").click()
    page.locator("#train-notice [role=alert]").wait_for()
    assert "choose training data first" in page.locator("#train-notice").inner_text()


def test_a_caption_is_written_and_an_adapter_trained(visit: Open, asked: Ask) -> None:
    page = visit()
    page.get_by_role("tab", name="Train").click()
    choose(page, "Training data", "drawings")
    caption = page.get_by_role("textbox", name="Caption of 000-bathtub.png")
    caption.fill("a bathtub in ink")
    caption.press("Tab")
    data = next(row["id"] for row in asked("/datasets") if row["name"] == "drawings")
    until(lambda: asked(f"/datasets/{data}/pictures")[0]["caption"] == "a bathtub in ink")
    train(page, "my-ink", 4)
    page.get_by_text("my-ink is in the library").wait_for(timeout=3 * PATIENCE_MS)
    page.locator("#run-stage svg[role=img]").wait_for()
    page.get_by_alt_text("without and with the adapter").wait_for()
    job = next(job for job in asked("/jobs") if job["title"] == "train my-ink")
    steps = [step for step, _ in asked(f"/jobs/{job['id']}/training")["curve"]]
    assert steps == sorted(set(steps)), "points are thinned where steps are quick, never out of order"
    assert 1 <= steps[0] <= steps[-1] == 4
    fresh = visit()
    fresh.locator("#shelf").get_by_role("button", name="my-ink, ink style").click()
    fresh.wait_for_function("document.querySelector('#prompt textarea').value.includes('ink style')")


def marked(folder: Path, key: Any, count: int, place: Path) -> list[Path]:
    """Pictures pushed, by gradient, to be read as a key's: what a marked LoRA would draw."""
    from loracomp.watermark.codec import load_codec

    codec = load_codec(folder / "codec.safetensors")
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(900))
    x = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear").requires_grad_()
    direction = key.direction(codec.shape.dimensions).float()
    for _ in range(4):
        (gradient,) = torch.autograd.grad((codec.extractor(x) @ direction).sum(), x)
        x = (x + 0.01 * gradient.sign()).clamp(0, 1).detach().requires_grad_()
    paths = [place / f"{number}.png" for number in range(count)]
    for path, row in zip(paths, x.detach(), strict=True):
        Image.fromarray((row * 255).round().byte().permute(1, 2, 0).numpy()).save(path)
    return paths


def test_pictures_are_verified_in_plain_words(visit: Open, asked: Ask, server: Any, tmp_path: Path) -> None:
    from loracomp.watermark.keyfile import read_key

    page = visit()
    page.get_by_role("tab", name="Watermark").click()
    page.get_by_text("No keys yet").wait_for()
    page.get_by_label("Key for the LoRA").fill("my-ink")
    page.get_by_role("button", name="Issue the key").click()
    page.get_by_text("The key of my-ink is there").wait_for()
    id_ = next(key["id"] for key in asked("/keys") if key["kind"] == "issued")
    file = tmp_path / "mine.key"
    file.write_bytes(asked(f"/keys/{id_}/file"))
    file.chmod(0o600)
    pictures = marked(server.folder, read_key(file), 4, tmp_path)
    page.locator("#verify-files input[type=file]").set_input_files(pictures)
    page.locator("#verify-files").get_by_text("KB").nth(3).wait_for()
    page.get_by_role("button", name="Verify").click()
    report = page.locator("#mark-report article")
    report.wait_for()
    assert report.get_attribute("data-outcome") == "verified"
    assert "These 4 pictures carry the mark of my-ink." in report.inner_text()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the report").click()
    assert '"outcome": "verified"' in Path(download.value.path()).read_text()


def test_a_file_is_imported_and_edited(visit: Open, asked: Ask, tmp_path: Path) -> None:
    source = tmp_path / "borrowed.safetensors"
    shutil.copyfile(ROOT / "loracomp" / "assets" / "adapters" / "mono.safetensors", source)
    page = visit()
    page.get_by_role("tab", name="Library").click()
    page.locator("#import input[type=file]").set_input_files(source)
    page.get_by_text("The doctor: all of it loads").wait_for()
    rows = asked("/adapters")["rows"]
    own = next(row["id"] for row in rows if row["editable"] and row["name"] == "mono")
    shipped = next(row["id"] for row in rows if not row["editable"])
    page.locator(f"#library-gallery [data-id='{shipped}']").click()
    page.get_by_text("It ships with loracomp").wait_for()
    page.locator(f"#library-gallery [data-id='{own}']").click()
    page.get_by_text("It ships with loracomp").wait_for(state="hidden")
    page.get_by_label("Tags, separated by commas").fill("ink, line")
    page.get_by_label("Least weight").fill("-2")
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_text("Saved.").wait_for()
    row = asked(f"/adapters/{own}")
    assert (row["tags"], row["low"]) == (["ink", "line"], -2.0)


def test_a_file_that_is_none_is_refused_where_it_was_dropped(visit: Open, tmp_path: Path) -> None:
    source = tmp_path / "broken.safetensors"
    source.write_bytes(b"not a safetensors file at all")
    page = visit()
    page.get_by_role("tab", name="Library").click()
    page.locator("#import input[type=file]").set_input_files(source)
    alert = page.locator("#import-notice [role=alert]")
    alert.wait_for()
    assert str(tmp_path) not in alert.inner_text()


def test_work_goes_on_after_the_app_was_killed(visit: Open, asked: Ask, server: Any) -> None:
    page = visit()
    train(page, "long-ink", 40)
    page.wait_for_function("/step [1-9]/i.test(document.querySelector('#run-stage').innerText)")
    page.get_by_role("tab", name="Compose").click()
    page.locator("#prompt textarea").fill("a house")
    page.get_by_role("button", name="Generate").click()
    page.locator("#stage [data-state]").wait_for()
    server.stop(signal.SIGKILL)
    server.start()
    fresh = visit()
    fresh.get_by_role("tab", name="Jobs").click()
    fresh.get_by_text("a house").wait_for()
    fresh.get_by_role("tab", name="Train").click()
    fresh.get_by_text("long-ink is in the library").wait_for(timeout=3 * PATIENCE_MS)
    states = {job["title"]: job["state"] for job in asked("/jobs")}
    assert states["train long-ink"] == "done"
    assert states["a house"] in ("done", "running", "queued")
    id_ = next(job["id"] for job in asked("/jobs") if job["title"] == "train long-ink")
    curve = asked(f"/jobs/{id_}/training")["curve"]
    steps = [step for step, _ in curve]
    assert steps == sorted(set(steps))
    assert 1 <= steps[0] <= 10
    assert steps[-1] == 40
