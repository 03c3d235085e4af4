"""Training of the judge: names, styles and colors by zero-shot softmax, captions by contrast."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from loracomp.evaluation.glyph_judge import JudgeConfig, build_clip, normalized, tokenize
from loracomp.training.glyph.cells import ALL_STYLES
from loracomp.training.glyph.clock import (
    Average,
    Budget,
    Log,
    learning_rate,
    save_atomic,
    set_learning_rate,
)
from loracomp.training.glyph.judge import Judge, load_judge
from loracomp.training.glyph.judge_batch import STYLE_PHRASES, Batch, JudgeData, Phrasebook
from loracomp.training.glyph.judge_report import calibrate, held_out_cells, report
from loracomp.training.glyph.lookalikes import groups
from loracomp.training.glyph.palette import COLOR_NAMES
from loracomp.training.glyph.pictures import Pictures
from loracomp.training.glyph.splits import Cell


@dataclass(frozen=True)
class JudgeRun:
    """How the judge is trained."""

    minutes: float = 5.0
    batch: int = 768
    rate: float = 2e-3
    compile: bool = True
    steps: int | None = None
    model: JudgeConfig = field(default_factory=JudgeConfig)


class JudgeLoss(nn.Module):
    """Cross-entropies over all names, styles and colors, and captions against each other.

    ``forward`` takes a batch's pictures and labels, the captions (B, 24), and the prompts'
    token ids (P, 24): all subjects, then all styles, then all colors.
    """

    def __init__(self, clip: nn.Module, counts: tuple[int, int, int]) -> None:
        super().__init__()
        self.clip = clip
        self.counts = counts
        self.scales = nn.Parameter(torch.tensor([3.0, 2.7, 2.7, 2.7]))

    def forward(
        self, pictures: Tensor, labels: tuple[Tensor, Tensor, Tensor], captions: Tensor, prompts: Tensor
    ) -> tuple[Tensor, Tensor]:
        images = F.normalize(self.clip.encode_image(normalized(pictures)).float(), dim=-1)  # type: ignore[operator]
        words = self.clip.encode_text(torch.cat([prompts, captions])).float()  # type: ignore[operator]
        words = F.normalize(words, dim=-1)
        scales = self.scales.clamp(max=4.2).exp()
        tables = words[: len(prompts)].split(self.counts)
        logits = [s * images @ table.T for s, table in zip(scales[:3], tables, strict=True)]
        losses = [
            F.cross_entropy(row, label, ignore_index=-1, label_smoothing=0.03)
            for row, label in zip(logits, labels, strict=True)
        ]
        pair = scales[3] * images @ words[len(prompts) :].T
        same = labels[0][:, None] == labels[0][None, :]
        same = same & ~torch.eye(len(pair), dtype=torch.bool, device=pair.device)
        pair = pair.masked_fill(same, -1e4)
        target = torch.where(labels[0] >= 0, torch.arange(len(pair), device=pair.device), -1)
        contrast = F.cross_entropy(pair, target, ignore_index=-1)
        contrast = contrast + F.cross_entropy(pair.T, target, ignore_index=-1)
        known = labels[0] >= 0
        right = ((logits[0].argmax(1) == labels[0]) & known).sum() / known.sum()
        return losses[0] + losses[1] + 0.2 * losses[2] + 0.15 * contrast, right


def named_config(base: JudgeConfig, pictures: Pictures) -> JudgeConfig:
    """The config with everything that the judge names filled in."""
    slugs = sorted(pictures.subjects)
    return replace(
        base,
        subjects=tuple(slugs),
        subject_names=tuple(pictures.subjects[s].name for s in slugs),
        styles=ALL_STYLES,
        style_phrases=tuple(STYLE_PHRASES[s] for s in ALL_STYLES),
        colors=COLOR_NAMES,
        groups=tuple(tuple(g) for g in groups()),
    )


def train_judge(
    run: JudgeRun,
    load: Callable[[], Pictures],
    tokenizer: Path,
    out: Path,
    device: str,
    cells: list[Cell] | None = None,
) -> Path:
    """Train for the run's minutes and write ``out/judge/``; resumes from ``out/judge.pt``.

    ``cells`` are kept from training and used to calibrate and test; the committed ones if None.
    """
    cells = held_out_cells() if cells is None else cells
    torch.manual_seed(31)
    words = Tokenizer.from_file(str(tokenizer))
    words.no_padding()
    pictures = load()
    config = named_config(run.model, pictures)
    loss = JudgeLoss(build_clip(config).train(), (len(config.subjects), len(ALL_STYLES), len(COLOR_NAMES)))
    loss.to(device).train()
    data = JudgeData(pictures, frozenset(cells))
    book = Phrasebook(words, data, device)
    about = asdict(replace(run, model=JudgeConfig(run.model.vision)))
    log = Log(out / "judge.json", {"run": about})
    _optimize(run, loss, (data, book, _prompts(config, words, device)), log, out / "judge.pt")
    folder = _write(loss.clip, config, words, tokenizer, pictures, cells, out)
    log.add(finished=True, **report(load_judge(folder, device), pictures, cells))
    return folder


def _optimize(
    run: JudgeRun, loss: JudgeLoss, source: tuple[JudgeData, Phrasebook, Tensor], log: Log, saved: Path
) -> None:
    """Train until the budget is spent; the averaged weights are in ``loss`` afterwards."""
    data, book, prompts = source
    optimizer = torch.optim.AdamW(
        _groups(loss), run.rate, betas=(0.9, 0.98), weight_decay=0.05, fused=run.compile
    )
    average = Average(loss, 0.998)
    step, spent = _resume(saved, loss, average)
    compiled = torch.compile(loss) if run.compile else loss
    _warm_up(compiled, data, book, prompts, run, loss)
    budget = Budget(run.minutes, spent)
    last = budget.spent
    while (fraction := budget.passed(step, run.steps)) < 1:
        set_learning_rate(optimizer, learning_rate(run.rate, step, fraction, hold=0.2))
        right = _step(compiled, data.draw(run.batch), book, prompts, run, optimizer)
        average.update(loss.parameters(), step)
        step += 1
        if budget.spent - last > 20:
            last = budget.spent
            log.add(step=step, seconds=last, train_right=float(right))
            state = {"model": loss.state_dict(), "average": average.values}
            save_atomic(saved, state | {"step": step, "spent": last})
    average.copy_to(loss)


def _groups(loss: nn.Module) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels only."""
    decayed = [p for p in loss.parameters() if p.ndim > 1]
    plain = [p for p in loss.parameters() if p.ndim <= 1]
    return [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]


def _prompts(config: JudgeConfig, words: Tokenizer, device: str) -> Tensor:
    """Token ids of all subjects, then all styles, then all colors, as the finished judge uses them."""
    texts = [f"a {name} emoji" for name in config.subject_names]
    texts += [*config.style_phrases, *(f"{color} background" for color in config.colors)]
    return tokenize(words, texts).to(device)


def _step(
    loss: Any, batch: Batch, book: Phrasebook, prompts: Tensor, run: JudgeRun, optimizer: Any
) -> Tensor:
    """One update (none without an optimizer); the share of subjects named right."""
    captions = book.captions(batch)
    labels = batch.subject, batch.style, batch.color
    pictures = batch.pictures.contiguous(memory_format=torch.channels_last)
    with torch.autocast(pictures.device.type, torch.bfloat16, enabled=run.compile):
        total, right = loss(pictures, labels, captions, prompts)
    total.backward()
    if optimizer is not None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return right


def _warm_up(
    compiled: Any, data: JudgeData, book: Phrasebook, prompts: Tensor, run: JudgeRun, loss: nn.Module
) -> None:
    """Compile before the clock starts."""
    if not run.compile:
        return
    began = time.monotonic()
    _step(compiled, data.draw(run.batch), book, prompts, run, None)
    loss.zero_grad(set_to_none=True)
    print(f"[judge] compiled in {time.monotonic() - began:.0f} s", flush=True)


def _resume(path: Path, loss: nn.Module, average: Average) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    saved: dict[str, Any] = torch.load(path, map_location=average.values[0].device)
    loss.load_state_dict(saved["model"])
    average.values = saved["average"]
    return int(saved["step"]), float(saved["spent"])


def _write(
    clip: nn.Module,
    config: JudgeConfig,
    words: Tokenizer,
    tokenizer: Path,
    pictures: Pictures,
    cells: list[Cell],
    out: Path,
) -> Path:
    """Calibrate, and write the judge's folder."""
    scales = calibrate(Judge(clip, config, words), pictures, cells)
    folder = out / "judge"
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        k: (v.half() if v.is_floating_point() else v).contiguous().cpu() for k, v in clip.state_dict().items()
    }
    save_file(state, folder / "model.safetensors")
    rows = json.loads(tokenizer.read_text(encoding="utf-8"))
    compact = json.dumps(rows, separators=(",", ":"), ensure_ascii=False)
    (folder / "tokenizer.json").write_text(compact, encoding="utf-8")
    text = replace(config, temperatures=scales).to_json()
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder
