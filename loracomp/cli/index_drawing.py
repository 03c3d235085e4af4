"""What ``loracomp index build --draw`` and ``loracomp index show --picture`` add."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from loracomp.cli.screen import steps_bar
from loracomp.errors import ResourceError, UsageError

Draw = Annotated[
    bool, typer.Option("--draw", help="Draw small pictures with each LoRA, to find it by what it shows.")
]
Picture = Annotated[Path | None, typer.Option(help="PNG to write: what it draws unasked, side by side.")]


@dataclass
class Drawn:
    """What was drawn with the adapters of all bases.

    Attributes:
        drawn: Adapters that have pictures now and had none.
        failed: Files that could not be drawn with, and why.
        undrawn: Adapters left out because their base is not at hand, by base.
    """

    drawn: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    undrawn: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return dict(vars(self))

    def print(self) -> None:
        """Says what was drawn and what could not be; nothing where there was nothing to draw."""
        for why in self.failed.values():
            typer.echo(f"✗ {why}")
        if self.drawn or self.failed:
            failed = f", {len(self.failed)} cannot be drawn with" if self.failed else ""
            typer.echo(f"{self.drawn} adapters drawn{failed}")

    def check(self) -> None:
        """Raises :class:`ResourceError` where a base was not at hand."""
        for base, count in self.undrawn.items():
            raise ResourceError(
                f"{count} adapters of {base} are not drawn; name its folder: "
                f"--base {base} --base-folder FOLDER"
            )


def check_drawable(base: str | None, folder: Path | None) -> None:
    """Refuses to draw for a base that is named and not at hand.

    Raises:
        ResourceError: No folder is named, and the base does not ship.
        UnknownNameError: No such base.
    """
    from loracomp.bases import get_base
    from loracomp.formats import shipped_folder

    if base and get_base(base) and not folder and shipped_folder(base) is None:
        raise ResourceError(f"--draw needs the base's pipeline; name it: --base {base} --base-folder FOLDER")


def draw_all(collection: Any, base: str | None, folder: Path | None, quiet: bool) -> Drawn:
    """Draws with what has no pictures yet, for the base that is named or all that are at hand."""
    from loracomp.alone import open_alone
    from loracomp.formats import shipped_folder
    from loracomp.retrieval.drawing import draw, undrawn

    out = Drawn()
    for name, ids in undrawn(collection).items():
        if base and name != base:
            continue
        source = str(folder) if folder else name
        if not folder and shipped_folder(name) is None:
            out.undrawn[name] = len(ids)
            continue
        with steps_bar("drawing", quiet, "adapter") as progress:
            report = draw(collection, open_alone(name, source), progress=progress)
        out.drawn += report.drawn
        out.failed |= report.failed
    return out


def write_strip(out: Path, name: str, drawn: Any) -> None:
    """Writes an adapter's pictures side by side.

    Raises:
        ResourceError: It was not drawn with.
        UsageError: The file cannot be written.
    """
    from loracomp.retrieval.drawn import strip

    if drawn is None:
        raise ResourceError(
            f"{name}: no pictures yet; draw them: loracomp index build DIR --index PATH --draw"
        )
    if not out.parent.is_dir() or out.is_dir():
        raise UsageError(f"{out}: cannot be written; name a file in a folder that exists")
    strip(drawn).save(out, "PNG")
