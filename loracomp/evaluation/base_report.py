"""The result of a base check as text, data and pictures."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loracomp.evaluation.fidelity import Law
from loracomp.evaluation.pace import Pace
from loracomp.evaluation.sheet import contact_sheet


@dataclass(frozen=True)
class Checked:
    """What a base check found.

    Attributes:
        source: Path or id of the base, as given.
        base: Its family, or the pipeline's class for one that is not known.
        setting: Pipeline, scheduler, device, dtype, pixels, steps, versions.
        laws: The laws.
        paces: Times of a denoiser call; absolute ones mean something on a GPU alone.
    """

    source: str
    base: str
    setting: dict[str, Any]
    laws: tuple[Law, ...]
    paces: tuple[Pace, ...]

    @property
    def holds(self) -> bool:
        """Whether all laws do."""
        return all(law.holds for law in self.laws)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; times in seconds, on a GPU alone."""
        paces: list[dict[str, Any]] = []
        for pace in self.paces:
            ratios = {"ours_over_base": pace.over_base, "ours_over_peft": pace.over_peft}
            paces.append({"adapters": pace.adapters, **{k: round(v, 3) for k, v in ratios.items()}})
            if self.setting["device"] == "cuda":
                paces[-1] |= {"base_s": pace.base, "ours_s": pace.ours, "peft_s": pace.peft}
        return {
            "source": self.source,
            "base": self.base,
            "holds": self.holds,
            "laws": [asdict(law) for law in self.laws],
            "step": paces,
            "setting": self.setting,
        }

    def markdown(self) -> str:
        """The report as a page."""
        verdict = "all laws hold" if self.holds else "**some laws do not hold**"
        lines = [f"# {self.source}", "", f"A base of the family {self.base}: {verdict}.", ""]
        lines += ["| law | holds | relative difference | limit | |", "|---|---|---|---|---|"]
        for law in self.laws:
            holds = "yes" if law.holds else "**no**"
            lines.append(f"| {law.name} | {holds} | {_figure(law.error)} | {_limit(law)} | {law.note} |")
        lines += ["", "One denoiser call, medians of interleaved rounds:", ""]
        lines += ["| adapters | ours / no adapter | ours / set_adapters |", "|---|---|---|"]
        lines += [f"| {pace.adapters} | {pace.over_base:.2f} | {pace.over_peft:.2f} |" for pace in self.paces]
        if self.setting["device"] == "cuda" and self.paces:
            times = ", ".join(
                f"{p.adapters}: {1000 * p.ours:.1f} and {1000 * p.peft:.1f} ms" for p in self.paces
            )
            lines += ["", f"No adapter {1000 * self.paces[0].base:.1f} ms; ours and set_adapters {times}."]
        lines += ["", "Setting: " + ", ".join(f"{k} {v}" for k, v in self.setting.items()) + "."]
        lines += ["", "![What was drawn](sheet.png)", ""]
        return "\n".join(lines)


def _figure(error: float | None) -> str:
    return "—" if error is None else f"{error:.1e}"


def _limit(law: Law) -> str:
    return "bits" if law.error is None else f"{law.limit:.1e}"


def setting_of(pipe: Any, side: int, steps: int) -> dict[str, Any]:
    """What a report says about where it came from."""
    import diffusers
    import peft
    import torch

    import loracomp

    device = getattr(pipe, "_execution_device", pipe.device)
    cuda = device.type == "cuda"
    return {
        "pipeline": type(pipe).__name__,
        "scheduler": type(pipe.scheduler).__name__,
        "device": device.type,
        "machine": torch.cuda.get_device_name(device) if cuda else platform.machine(),
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "pixels": side,
        "steps": steps,
        "loracomp": loracomp.__version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "peft": peft.__version__,
    }


def rows(pictures: Mapping[str, Sequence[Any]]) -> list[tuple[str, list[Any]]]:
    """Pictures by name as rows of a sheet, single ones side by side."""
    single = [name for name, row in pictures.items() if len(row) == 1]
    groups = [single[start : start + 3] for start in range(0, len(single), 3)]
    found = [(", ".join(group), [pictures[name][0] for name in group]) for group in groups]
    return found + [(name, list(row)) for name, row in pictures.items() if len(row) > 1]


def write(checked: Checked, pictures: Mapping[str, Sequence[Any]], folder: Path) -> list[Path]:
    """Writes ``report.md``, ``report.json`` and ``sheet.png`` into a folder, made if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"report.md": checked.markdown(), "report.json": json.dumps(checked.to_dict(), indent=2) + "\n"}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    contact_sheet(rows(pictures), title=checked.source, cell=160).save(folder / "sheet.png")
    return [folder / name for name in (*texts, "sheet.png")]
