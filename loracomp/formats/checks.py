"""Checks of one file: what is wrong with it, or what another tool will make of it, and the remedy.

The facts about other tools were found by running them (diffusers 0.42.1) or reading their loaders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from loracomp.bases import BASES
from loracomp.formats.gate import printable
from loracomp.formats.names import layout
from loracomp.formats.native import family
from loracomp.formats.report import Report, Row
from loracomp.registry import Registry

_NO_ALPHA_TENSORS = ("diffusers", "diffusers-old", "peft", "bare")
_LOUD = 16.0


@dataclass(frozen=True)
class Finding:
    """One thing to know about a file.

    Attributes:
        code: Name of the check.
        level: ``error`` (a load is wrong or partial), ``warning`` or ``note``.
        message: What is the matter, one line.
        fix: What to do.
    """

    code: str
    level: str
    message: str
    fix: str


Check = Callable[[Report], Iterator[tuple[str, str, str]]]
CHECKS: Registry[Check] = Registry("check", "loracomp.checks")


def findings(report: Report) -> tuple[Finding, ...]:
    """What all checks find, errors first."""
    found = [Finding(code, *parts) for code in CHECKS for parts in CHECKS[code](report)]
    order = ("error", "warning", "note")
    return tuple(sorted(found, key=lambda finding: (order.index(finding.level), finding.code)))


def converting(options: str = "") -> str:
    """The advice to convert a file, with options."""
    return f"convert it with 'loracomp convert{' ' if options else ''}{options}'"


def counted(number: int, noun: str) -> str:
    """A number of things: ``1 layer``, ``2 layers``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _some(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(printable(name) for name in names[:limit]) + more


def _family(report: Report) -> str:
    """The original code of the base's denoiser; empty for bases of one's own."""
    if report.base not in BASES:
        return ""
    place = layout(report.base)
    return family(place.table, place.denoiser)


def _of(report: Report, *algebras: str) -> list[Row]:
    return [row for row in report.rows if row.algebra in algebras]


@CHECKS.register("family", summary="names and sizes of a model that loracomp does not know")
def another_family(report: Report) -> Iterator[tuple[str, str, str]]:
    """Some of its layers fit a base by chance, for models take over each other's blocks."""
    if report.resembles:
        yield "error", f"it looks made for {report.resembles}, not {report.base}", "use it with that model"


@CHECKS.register("unmatched", summary="tensors without a place in the base")
def unmatched(report: Report) -> Iterator[tuple[str, str, str]]:
    """Tensors that a load would leave out, by reason."""
    reasons: dict[str, list[str]] = {}
    for key, reason in report.unmatched.items():
        reasons.setdefault(reason, []).append(key)
    for reason, keys in reasons.items():
        yield (
            "error",
            f"{counted(len(keys), 'tensor')} left out: {reason} ({_some(keys)})",
            "use the base it was made for, or convert it with --allow-partial to drop them",
        )


@CHECKS.register("ignored", summary="tensors without a place that are zero")
def ignored(report: Report) -> Iterator[tuple[str, str, str]]:
    """Changes of biases and norms that are zero throughout."""
    if report.ignored:
        keys = list(report.ignored)
        yield (
            "note",
            f"{counted(len(keys), 'tensor')} of zeros without a place ({_some(keys)})",
            "nothing to do",
        )


@CHECKS.register("damaged", summary="NaN, infinite or otherwise unusable values")
def damaged(report: Report) -> Iterator[tuple[str, str, str]]:
    """Modules whose values cannot be used."""
    for reason in report.damaged.values():
        yield "error", reason, "train or download it again"


@CHECKS.register("zero", summary="layers whose update is zero")
def zero(report: Report) -> Iterator[tuple[str, str, str]]:
    """Layers that change nothing: never trained, or lost in half precision."""
    if report.zero:
        what = f"{len(report.zero)} of {len(report.rows)} layers change nothing ({_some(list(report.zero))})"
        level = "warning" if len(report.zero) < len(report.rows) else "error"
        yield level, what, "leave these layers out of the training, or train longer"


@CHECKS.register("outlier", summary="layers whose size stands out among their kind")
def outlier(report: Report) -> Iterator[tuple[str, str, str]]:
    """Robust z-score of the log size above 6."""
    if report.outliers:
        worst = [f"{path} (z = {z:+.0f})" for path, z in report.outliers.items()]
        yield (
            "warning",
            f"{counted(len(worst), 'outlier')} among the layers: {_some(worst)}",
            "look at images before trusting it",
        )


@CHECKS.register("strength", summary="alphas that are negative, zero or far above the rank")
def strength(report: Report) -> Iterator[tuple[str, str, str]]:
    """Scales outside (0, 16]."""
    odd = [f"{row.path} (×{row.scale:g})" for row in report.rows if not 0 < row.scale <= _LOUD]
    if odd:
        yield (
            "warning",
            f"{counted(len(odd), 'layer')} of unusual strength: {_some(odd)}",
            "check alpha and rank",
        )


@CHECKS.register("header-alpha", summary="strength that only the header states")
def header_alpha(report: Report) -> Iterator[tuple[str, str, str]]:
    """ComfyUI and InvokeAI never read that header; editors and converters strip it."""
    rows = [row for row in report.rows if row.alpha_from == "header" and row.scale != 1.0]
    if rows:
        scale = f"×{rows[0].scale:g}"
        layers = counted(len(rows), "layer")
        what = f"{layers} with strength {scale} by the header alone; tools that ignore it use ×1"
        yield "warning", what, f"{converting()}, which multiplies it into the weights"


@CHECKS.register("no-alpha", summary="files that state no strength at all")
def no_alpha(report: Report) -> Iterator[tuple[str, str, str]]:
    """Right where alpha equals the rank; the sign of a stripped header otherwise."""
    silent = report.rows and all(row.alpha_from == "nowhere" for row in report.rows)
    if silent and report.dialect in _NO_ALPHA_TENSORS:
        what = "no alpha is stated, so every tool takes ×1; if the header was stripped, that may be wrong"
        yield "note", what, "compare with the training's alpha and rank"


@CHECKS.register("diffusers-mixed-alpha", summary="kohya files of several alphas for a UNet")
def mixed_alpha(report: Report) -> Iterator[tuple[str, str, str]]:
    """diffusers looks for the alphas of attention layers under names that match none."""
    if report.dialect != "kohya" or _family(report) != "sgm":
        return
    for component in sorted({row.path.partition(".")[0] for row in report.rows}):
        rows = [row for row in report.rows if row.path.startswith(f"{component}.")]
        alphas = sorted({row.alpha for row in rows if row.alpha_from == "tensor"})
        if len(alphas) > 1:
            numbers = _some([f"{alpha:g}" for alpha in alphas])
            what = (
                f"{component} has several alphas ({numbers}); diffusers takes wrong ones for attention layers"
            )
            yield "warning", what, f"{converting()}, which makes them one"


@CHECKS.register("diffusers-sd3", summary="kohya files for SD3, which diffusers does not load")
def kohya_mmdit(report: Report) -> Iterator[tuple[str, str, str]]:
    """diffusers loads nothing of them and calls its warning safe to ignore."""
    if report.dialect == "kohya" and _family(report) == "mmdit":
        what = "diffusers loads nothing of a kohya file for this base and does not say so"
        yield "warning", what, converting("--dialect diffusers")


@CHECKS.register("comfyui-alone", summary="ComfyUI's own names, which hardly another tool reads")
def comfyui_alone(report: Report) -> Iterator[tuple[str, str, str]]:
    """diffusers knows them for FLUX.1 alone (and not all of them), A1111 and InvokeAI for no base of ours."""
    if report.dialect == "comfyui" and _family(report) in ("sgm", "mmdit"):
        what = "diffusers does not load this dialect for this base, nor do A1111 and InvokeAI"
        yield "note", what, f"{converting()} for use there"


@CHECKS.register(
    "diffusers-flux-original", summary="FLUX layers by their original names with lora_A and lora_B"
)
def flux_original(report: Report) -> Iterator[tuple[str, str, str]]:
    """diffusers knows FLUX's original names with lora_down and lora_up alone, and loads nothing of these."""
    if report.dialect in ("comfyui", "bfl") and report.style == "peft" and _family(report) == "flux":
        what = "diffusers loads nothing of FLUX's original names with lora_A and lora_B, and hardly says so"
        yield "warning", what, converting("--dialect diffusers")


@CHECKS.register("diffusers-flux-outside", summary="FLUX layers outside the blocks in kohya's names")
def flux_outside(report: Report) -> Iterator[tuple[str, str, str]]:
    """diffusers' converter leaves out their component prefix, so they match nothing."""
    if report.dialect not in ("kohya", "comfyui") or _family(report) != "flux":
        return
    paths = [
        row.path for row in report.rows if row.path.startswith("transformer.") and "_blocks." not in row.path
    ]
    if paths:
        layers = counted(len(paths), "layer")
        what = f"diffusers drops {layers} outside the blocks without a word ({_some(paths)})"
        yield "warning", what, converting("--dialect diffusers")


@CHECKS.register("diffusers-text-encoder", summary="text encoders that diffusers misreads or refuses")
def text_encoders(report: Report) -> Iterator[tuple[str, str, str]]:
    """diffusers tells a text encoder's dialect by one kind of layer, and stumbles where that is not there."""
    for component in sorted({row.path.partition(".")[0] for row in report.rows}):
        paths = [row.path for row in report.rows if row.path.startswith(f"{component}.")]
        if not component.startswith("text_encoder"):
            continue
        projected = [path for path in paths if path.endswith((".q_proj", ".k_proj", ".v_proj"))]
        rest = [path for path in paths if path not in projected and ".self_attn." not in path]
        if any(path.endswith(".out_proj") for path in paths):
            continue
        if report.dialect == "kohya" and projected:
            how = (
                f"drops its {counted(len(projected), 'attention layer')} without an error"
                if rest
                else "refuses the file"
            )
            what = f"{component} has q, k, v and no out_proj: diffusers {how}"
            yield "warning", what, f"{converting('--dialect diffusers')} for use there"
        elif report.dialect == "diffusers" and rest and not projected:
            what = f"{component} has no attention layer: diffusers refuses the file"
            yield "warning", what, f"{converting('--dialect diffusers-old')} for use there"


@CHECKS.register("diffusers-algebra", summary="LoHa, LoKr and full differences, which diffusers refuses")
def foreign_algebra(report: Report) -> Iterator[tuple[str, str, str]]:
    """A ValueError about renaming."""
    if rows := _of(report, "loha", "lokr", "diff"):
        kinds = ", ".join(sorted({row.algebra for row in rows}))
        yield (
            "warning",
            f"diffusers refuses the {kinds} of {counted(len(rows), 'layer')}",
            f"{converting()} into plain LoRA",
        )


@CHECKS.register("diffusers-dora", summary="DoRA magnitudes, which diffusers drops from kohya files")
def dora(report: Report) -> Iterator[tuple[str, str, str]]:
    """Then it is another LoRA, with a warning that does not say so."""
    if rows := _of(report, "dora"):
        layers = counted(len(rows), "layer")
        what = f"{layers} of DoRA; diffusers drops the magnitudes of kohya files without an error"
        yield "warning", what, converting("--base-folder FOLDER")


@CHECKS.register(
    "invokeai-sdxl", summary="dotted names for bases that InvokeAI reads in kohya's dialect only"
)
def invokeai(report: Report) -> Iterator[tuple[str, str, str]]:
    """Its probe knows kohya's prefixes only, and A1111 knows no other either."""
    row = BASES.get(report.base)
    if row is not None and row.dialect == "kohya" and report.dialect in _NO_ALPHA_TENSORS:
        yield "note", "A1111, Forge and InvokeAI do not read this dialect", converting("--dialect kohya")
