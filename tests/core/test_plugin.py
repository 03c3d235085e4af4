"""docs/plugin.md: every example runs, on tiny pipelines; and the front doors it shows keep their laws."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import KINDS, random_adapter, run, shapes_of, tiny_pipeline
from torch import Tensor

import loracomp
from loracomp.adapter import Adapter
from loracomp.errors import UnknownNameError, UsageError
from loracomp.evaluation.peft_peer import state_dict
from loracomp.fusion import Program
from loracomp.plugin import AdaptersStep, custom_pipeline
from loracomp.plugin.composing import opened

PAGE = Path(__file__).parents[2] / "docs" / "plugin.md"
EXAMPLES = re.findall(r"^## (.*?)\n.*?^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
NAMES = ("cat", "dog", "watercolor")


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with tiny models and adapters under the names that the examples use."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))

    def opener(source: str, base: str | None = None, modules: Any = None) -> Adapter:
        return ADAPTERS["sdxl", Path(source).stem]

    for home in ("loracomp.library.open_adapter", "loracomp.plugin.composing.open_adapter"):
        monkeypatch.setattr(home, opener)


def _adapter(kind: str, name: str) -> Adapter:
    suffixes = ("to_q", "to_v", "ff.net.2", "q_proj")
    return random_adapter(shapes_of(kind), suffixes, seed=NAMES.index(name), name=name)


ADAPTERS = {(kind, name): _adapter(kind, name) for kind in KINDS for name in NAMES}


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_the_examples_run(title: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in code.splitlines() if line and not line.startswith(("import ", "from "))]
    assert len(lines) <= 10
    tiny_pipeline("sdxl").save_pretrained(tmp_path / "my-sdxl")
    for name in NAMES:
        save_file(state_dict(ADAPTERS["sdxl", name], "unet"), tmp_path / f"{name}.safetensors")
    # What compiling changes is for tests/fusion/test_capacity.py; here the calls have to be right.
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    quick = code.replace("num_inference_steps=25", "num_inference_steps=2")
    done: dict[str, Any] = {}
    exec(compile(quick, str(PAGE), "exec"), done)
    pictures = [done[name] for name in ("image", "other", "mixed") if name in done]
    pictures += done.get("images", [])
    assert pictures
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def latents(pipe: Any, **more: Any) -> Tensor:
    return run(pipe, num_inference_steps=2, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_a_custom_pipeline_draws_what_attach_draws(kind: str, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    tiny_pipeline(kind).save_pretrained(tmp_path / "model")
    place = {"custom_pipeline": custom_pipeline(kind), "trust_remote_code": True}
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "model", **place)
    pipe.set_progress_bar_config(disable=True)
    plain = tiny_pipeline(kind)
    both = [ADAPTERS[kind, "cat"], ADAPTERS[kind, "dog"]]
    with loracomp.attach(plain, both, "switch"):
        expected = latents(plain)
    before = latents(pipe)
    ours = latents(pipe, adapters=both, program="switch")
    assert float((ours - expected).norm() / expected.norm()) < 1e-5
    assert float((ours - before).norm() / before.norm()) > 1e-3
    assert torch.equal(latents(pipe), before)
    pipe.save_pretrained(tmp_path / "again")
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "again")) is type(plain)


def modular() -> Any:
    from diffusers import StableDiffusionXLAutoBlocks

    blocks = StableDiffusionXLAutoBlocks()
    blocks.sub_blocks.insert("adapters", AdaptersStep(), 0)
    pipe, tiny = blocks.init_pipeline(), tiny_pipeline("sdxl")
    known = {
        name: part for name, part in tiny.components.items() if name in pipe.components and part is not None
    }
    pipe.update_components(**known)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def modular_latents(pipe: Any, **more: Any) -> Tensor:
    seed = torch.Generator().manual_seed(0)
    size = {"height": 32, "width": 32, "num_inference_steps": 2}
    found = pipe(prompt="a red apple", generator=seed, output_type="latent", output="latents", **size, **more)
    return found.float()


def test_a_modular_pipeline_draws_what_attach_draws() -> None:
    pipe, plain = modular(), tiny_pipeline("sdxl")
    guidance = pipe.guider.guidance_scale
    before = modular_latents(pipe)
    both = [ADAPTERS["sdxl", "cat"], ADAPTERS["sdxl", "dog"]]
    for program in ("merge", Program("switch", (0.4, 1.0), {"period": 0.5})):
        with loracomp.attach(plain, both, program):
            expected = latents(plain, guidance_scale=guidance)
        ours = modular_latents(pipe, adapters=both, program=program)
        # One call per half of guidance here, both in one batch there.
        assert float((ours - expected).norm() / expected.norm()) < 1e-5
    assert float((ours - before).norm() / before.norm()) > 1e-3
    assert torch.equal(modular_latents(pipe), before)


def test_a_modular_pipeline_refuses_what_it_cannot_read() -> None:
    pipe = modular()
    both = [ADAPTERS["sdxl", "cat"], ADAPTERS["sdxl", "dog"]]
    with pytest.raises(UsageError, match="encodes it once"):
        modular_latents(pipe, adapters=both, program="composite")
    unet = [
        Adapter({p: v for p, v in a.layers.items() if p.startswith("unet.")}, "custom", a.name) for a in both
    ]
    assert modular_latents(pipe, adapters=unet, program="composite").isfinite().all()


def test_named_adapters_bring_their_strengths() -> None:
    pipe = tiny_pipeline("sdxl")
    ready, program = opened(pipe, ["cat", ADAPTERS["sdxl", "dog"], "watercolor:0.5"], "switch")
    assert [adapter.name for adapter in ready] == ["cat", "dog", "watercolor"]
    assert program == Program("switch", (1.0, 1.0, 0.5), {})
    own = Program("merge", (0.3,))
    assert opened(pipe, ["cat"], own)[1] is own
    with pytest.raises(UsageError, match="the program has the strengths already; name cat alone"):
        opened(pipe, ["cat:0.5"], own)
    with pytest.raises(UsageError, match=r"adapters: cat:x: weight 'x' is not a number \(column 5\)"):
        opened(pipe, ["cat:x"], "merge")
    with pytest.raises(UnknownNameError, match="unknown kind of pipeline 'sd2'"):
        custom_pipeline("sd2")
