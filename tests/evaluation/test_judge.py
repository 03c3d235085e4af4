"""Judges: laws that hold for any weights, on a tiny open_clip model and on encoders made of pixels."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import GLYPH
from torch import Tensor

from loracomp.errors import FormatError, ResourceError, UnknownNameError, UsageError
from loracomp.evaluation.clip_judge import ClipJudge
from loracomp.evaluation.glyph_judge import JudgeConfig, build_clip, judge_of, load_judge
from loracomp.evaluation.judge import JUDGES, Judge, Vocabulary, open_judge

CONFIG = JudgeConfig(
    vision="tiny",
    width=32,
    text_width=32,
    text_layers=1,
    subjects=("apple", "cat", "kitten", "dog"),
    subject_names=("red apple", "cat", "kitten", "dog"),
    styles=("noto", "mono"),
    style_phrases=("noto style", "mono style"),
    colors=("white", "blue"),
    groups=(("cat", "kitten"),),
    temperatures={"subject": 30.0, "color": 5.0},
)


def tokenizer() -> object:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(GLYPH / "tokenizer")._tokenizer


def written(folder: Path) -> Path:
    """A random tiny judge on disk, in half precision as the real one is shipped."""
    torch.manual_seed(0)
    clip = build_clip(CONFIG)
    save_file({k: v.half().contiguous() for k, v in clip.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(CONFIG.to_json(), encoding="utf-8")
    tokenizer().save(str(folder / "tokenizer.json"))  # type: ignore[attr-defined]
    return folder


@cache
def random_judge() -> ClipJudge:
    torch.manual_seed(0)
    return judge_of("tiny", build_clip(CONFIG), CONFIG, tokenizer())


def pictures(count: int = 3, side: int = 128) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(5))


def test_probabilities_are_probabilities_over_merged_names() -> None:
    judge = random_judge()
    assert judge.vocabulary.heads == ("apple", "cat", "dog")
    for found, width in ((judge.subjects(pictures()), 3), (judge.styles(pictures()), 2)):
        assert found.shape == (3, width)
        assert torch.allclose(found.sum(1), torch.ones(3))
    assert judge.colours(pictures()).shape == (3, 2)


def test_a_group_has_the_sum_of_its_members() -> None:
    judge = random_judge()
    alone = judge_of("tiny", build_clip_like(judge), replace(CONFIG, groups=()), tokenizer())
    merged, single = judge.subjects(pictures()), alone.subjects(pictures())
    assert torch.allclose(merged[:, 1], single[:, 1] + single[:, 3], atol=1e-6)
    assert torch.allclose(merged[:, [0, 2]], single[:, [0, 2]], atol=1e-6)


def build_clip_like(judge: ClipJudge) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_clip(CONFIG)


def test_embeddings_are_unit_and_similarity_is_their_cosine() -> None:
    judge = random_judge()
    vectors = judge.embed(pictures())
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-6)
    assert torch.allclose(judge.similarity(pictures(), pictures()), torch.ones(3), atol=1e-6)
    flipped = pictures().flip(0)
    assert torch.allclose(judge.similarity(pictures(), flipped), judge.similarity(flipped, pictures()))


def test_a_picture_is_judged_alike_alone_and_in_company() -> None:
    judge = random_judge()
    together = judge.subjects(pictures())
    alone = torch.cat([judge.subjects(picture[None]) for picture in pictures()])
    assert torch.allclose(together, alone, atol=1e-5)


def test_the_image_text_score_is_clipscore() -> None:
    judge = random_judge()
    texts = ["a cat emoji", "mono style", "blue background"]
    cosine = (judge.embed(pictures()) * judge.embed_texts(texts)).sum(1)
    assert torch.allclose(judge.image_text(pictures(), texts), 2.5 * cosine.clamp_min(0))
    assert bool((judge.image_text(pictures(), texts) >= 0).all())


def test_pictures_of_other_sizes_are_resized() -> None:
    small = pictures(2, 16)
    large = small.repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert torch.allclose(random_judge().embed(large), random_judge().embed(large.clone()))
    assert random_judge().embed(small).shape == (2, 32)


def test_a_judge_survives_the_way_to_disk(tmp_path: Path) -> None:
    judge: Judge = open_judge(f"glyph:{written(tmp_path)}")
    assert judge.vocabulary == random_judge().vocabulary
    assert torch.allclose(judge.embed(pictures()), random_judge().embed(pictures()), atol=2e-3)
    assert JudgeConfig.from_json(CONFIG.to_json()) == CONFIG


def test_missing_and_damaged_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"config\.json"):
        load_judge(str(tmp_path))
    folder = written(tmp_path)
    save_file({"other": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(FormatError, match="not a judge"):
        load_judge(str(folder))


def test_names_are_looked_up_with_suggestions() -> None:
    named = random_judge().vocabulary
    assert named.subject("kitten") == named.subject("cat") == 1
    assert (named.style("mono"), named.colour("blue")) == (1, 1)
    with pytest.raises(UnknownNameError, match="kitten"):
        named.subject("kiten")
    with pytest.raises(UnknownNameError, match="mono"):
        named.style("monos")


def test_public_judges_are_registered_and_fail_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    assert set(JUDGES) >= {"glyph", "openclip"}
    named = Vocabulary({"cat": "a photo of a cat"})
    with pytest.raises(UsageError, match="vocabulary"):
        open_judge("openclip")
    with pytest.raises(UsageError, match="MODEL/WEIGHTS"):
        open_judge("openclip:ViT-B-32", named)
    with pytest.raises(ResourceError, match="neither in the local cache") as caught:
        open_judge("openclip:ViT-B-32/no_such_weights", named)
    assert "\n" not in str(caught.value)
    assert not caplog.records
    with pytest.raises(UnknownNameError):
        open_judge("glypf")


def test_a_public_judge_names_what_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    clip = build_clip(CONFIG)
    clip.visual.image_mean, clip.visual.image_std = (0.4, 0.4, 0.4), (0.2, 0.2, 0.2)  # type: ignore[union-attr]

    def tokens(texts: list[str]) -> Tensor:
        return torch.tensor([[0, *text.encode()[:20], 1] + [1] * (22 - len(text[:20])) for text in texts])

    monkeypatch.setattr("loracomp.evaluation.public_judge._opened", lambda model, weights: (clip, tokens))
    named = Vocabulary({"cat": "a photo of a cat", "dog": "a photo of a dog"}, {"oil": "an oil painting"})
    judge = open_judge("openclip:some/weights", named)
    assert judge.name == "openclip:some/weights"
    assert torch.allclose(judge.subjects(pictures(2, 64)).sum(1), torch.ones(2))
    assert torch.allclose(judge.styles(pictures(2)), torch.ones(2, 1))
    grey = torch.full((1, 3, 128, 128), 0.4)
    expected = torch.nn.functional.normalize(clip.encode_image(torch.zeros(1, 3, 128, 128)), dim=-1)  # type: ignore[operator]
    assert torch.allclose(judge.embed(grey), expected, atol=1e-5)


def test_the_training_recipe_reads_the_same_judge(tmp_path: Path) -> None:
    from loracomp.training.glyph import judge as recipe

    folder = written(tmp_path)
    ours, theirs = open_judge(f"glyph:{folder}"), recipe.load_judge(folder)
    assert torch.allclose(ours.subjects(pictures()), theirs.group_probabilities(pictures()), atol=1e-6)
    assert torch.allclose(ours.styles(pictures()), theirs.style_probabilities(pictures()), atol=1e-6)
    assert torch.allclose(ours.colours(pictures()), theirs.color_probabilities(pictures()), atol=1e-6)
