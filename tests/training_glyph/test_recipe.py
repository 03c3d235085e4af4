"""Every stage of the recipe at a tiny size, one after another, on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from loracomp.evaluation.glyph_judge import JudgeConfig
from loracomp.training.glyph.cells import ALL_STYLES
from loracomp.training.glyph.denoiser import DenoiserConfig
from loracomp.training.glyph.denoiser_train import DenoiserRun, train_denoiser
from loracomp.training.glyph.evaluate import Setting, figures, generate, requests
from loracomp.training.glyph.export import assemble, export
from loracomp.training.glyph.judge import load_judge
from loracomp.training.glyph.judge_train import JudgeRun, train_judge
from loracomp.training.glyph.latents import make_latents
from loracomp.training.glyph.pictures import Pictures
from loracomp.training.glyph.store import Store
from loracomp.training.glyph.vae import VaeConfig
from loracomp.training.glyph.vae_train import VaeRun, train_vae

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
VAE = VaeConfig(widths=(8, 8, 8, 8), latents=4, groups=4)
DENOISER = DenoiserConfig(
    widths=(16, 16, 16), latents=4, groups=8, text_width=32, text_layers=1, text_inner=32
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, pictures: Pictures, tokenizer_folder: Path) -> Path:
    """A folder in which every stage has run for about a second."""
    torch.set_num_threads(2)
    folder = tmp_path_factory.mktemp("work")
    run = VaeRun(batch=4, compile=False, steps=5, model=VAE)
    train_vae(run, lambda: pictures, folder, "cpu")
    words = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    make_latents(pictures, words, folder, per_icon=2, captions_each=2, config=VAE)
    train_denoiser(DenoiserRun(batch=4, compile=False, steps=4, model=DENOISER), folder, "cpu")
    cells = [(slug, style) for slug in ("key", "fire") for style in ALL_STYLES]
    judge = JudgeRun(batch=24, compile=False, steps=3, model=JudgeConfig("tiny", 16, 16, 1))
    file = tokenizer_folder / "tokenizer.json"
    train_judge(judge, lambda: pictures, file, folder, "cpu", cells)
    return folder


def test_training_lowers_the_vae_error_and_logs_it(work: Path) -> None:
    log = json.loads((work / "vae.json").read_text())["log"]
    assert log[-1]["step"] == 5
    assert log[-1]["held_out_db"] > 5
    assert set(log[-1]["by_style"]) >= {"icons", "pooled", "mono", "noto"}


def test_latents_show_no_unseen_subject_or_style(work: Path, pictures: Pictures) -> None:
    from loracomp.training.glyph.latents import draw_plan

    plan = draw_plan(pictures, 3)
    shown = [pictures.icons[i] for i in (*plan.icon, *plan.other[plan.other >= 0])]
    assert {i.subject for i in shown} == {"red-apple", "rocket", "pizza", "fire", "key", "balloon"}
    assert {i.style for i in shown} == {"noto", "twemoji", "flat", "emojione"}
    saved = torch.load(work / "latents.pt")
    assert len(saved["latents"]) == len(saved["ids"]) == 6 * 4 * 2


def test_stages_resume_where_they_stopped(work: Path) -> None:
    saved = torch.load(work / "latents.pt")
    first = json.loads((work / "denoiser.json").read_text())["log"][-1]["step"]
    from loracomp.training.glyph.clock import save_atomic
    from loracomp.training.glyph.denoiser import DenoiserLoss, build_text_encoder, build_unet

    loss = DenoiserLoss(build_unet(DENOISER), build_text_encoder(DENOISER))
    values = [p.detach().half() for p in loss.parameters()]
    state = {"model": loss.state_dict(), "average": values, "step": 5000, "spent": 1.0}
    again = work / "again"
    save_atomic(again / "denoiser.pt", state)
    save_atomic(again / "latents.pt", saved)
    train_denoiser(DenoiserRun(batch=4, compile=False, steps=5002, model=DENOISER), again, "cpu")
    assert first == 4
    assert json.loads((again / "denoiser.json").read_text())["log"][-1]["step"] == 5002


def test_the_export_is_a_plain_diffusers_folder(work: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = assemble(work, tokenizer_folder, VAE, DENOISER)
    size = export(pipe, {"steps": 2}, tmp_path / "glyph")
    assert size == sum(f.stat().st_size for f in (tmp_path / "glyph").rglob("*") if f.is_file())
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "glyph")
    assert {again.unet.dtype, again.vae.dtype, again.text_encoder.dtype} == {torch.float32}
    images = generate(again, ["a key emoji", "fire"], Setting(steps=2))
    assert images.shape == (2, 3, 128, 128)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1


def test_the_judge_is_written_and_answers(work: Path, store: Store, pictures: Pictures) -> None:
    judge = load_judge(work / "judge")
    images = torch.rand(3, 3, 128, 128)
    for shares, names in (
        (judge.subject_probabilities(images), judge.subjects),
        (judge.style_probabilities(images), judge.styles),
        (judge.color_probabilities(images), judge.colors),
        (judge.group_probabilities(images), judge.groups),
    ):
        assert shares.shape == (3, len(names))
        torch.testing.assert_close(shares.sum(1), torch.ones(3))
    torch.testing.assert_close(judge.embed_images(images).norm(dim=1), torch.ones(3))
    wanted = requests(store, 2)
    found = figures(judge, torch.rand(len(wanted), 3, 128, 128), wanted)
    assert all(0 <= value <= 2.5 for value in found.values())
    rows = json.loads((work / "judge.json").read_text())["log"][-1]
    assert set(rows["by_style"]) == set(ALL_STYLES)
