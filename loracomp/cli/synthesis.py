"""``loracomp index synthesize``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loracomp.cli.index import _DEFAULT, BaseFolder, Place, Server, Where, opened, searching
from loracomp.cli.screen import Json, emit_json, emit_table
from loracomp.errors import UsageError

if TYPE_CHECKING:
    from loracomp.adapter import Adapter
    from loracomp.retrieval.search import Answer


def synthesize(
    text: Annotated[str, typer.Argument(help="What the adapter should be for.")],
    out: Annotated[Path, typer.Option(help="The LoRA file to write.")],
    index: Place = _DEFAULT,
    count: Annotated[int, typer.Option("--count", "-n", min=2, max=8, help="Neighbours to mix.")] = 4,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank; the largest of theirs.")] = None,
    base: Annotated[str | None, typer.Option(help="Base they must be for.")] = None,
    base_folder: BaseFolder = None,
    where: Where = None,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Mix the nearest adapters into a new one, and say when the nearest alone is better."""
    from loracomp.formats import save
    from loracomp.retrieval.filters import parse
    from loracomp.retrieval.synthesis import synthesize as mix

    if not out.parent.is_dir() or out.is_dir():
        raise UsageError(f"{out}: cannot be written; name a file in a folder that exists")
    with opened(index, server) as collection:
        limits = parse(where) if where else None
        answer = searching(collection, base, base_folder).text(text, count, limits, base)
        chance = _chance(collection, answer.base)
    adapters, scores = mixable(answer)
    made, report = mix(
        adapters,
        scores,
        name=out.stem,
        chance=chance,
        rank=rank,
        licences=[hit.row["licence"] for hit in answer.hits],
    )
    save(made, out)
    if as_json:
        emit_json({"file": str(out), "used": answer.used, **report.to_dict(), "advice": report.advice()})
        return
    rows = zip(report.parents, (f"{w:.2f}" for w in report.weights), report.cosines, strict=True)
    emit_table("", ["parent", "weight", "cosine"], [(n, w, f"{c:.3f}") for n, w, c in rows])
    typer.echo(
        f"{out}: rank {max(made.ranks)}, {report.kept:.1%} of the mixture kept, size {report.size:.2f}"
    )
    typer.echo(report.advice())


def mixable(answer: Answer) -> tuple[list[Adapter], list[float]]:
    """The adapters that were found and how near they are.

    By the cosines of the learned encoder where there is one, else by the fused scores.
    """
    from loracomp.library import open_adapter

    learned = [hit.explain.get("learned") for hit in answer.hits]
    scores = [s for s in learned if s is not None] if None not in learned else [h.score for h in answer.hits]
    return [open_adapter(hit.row["path"], answer.base) for hit in answer.hits], scores


def _chance(collection: Any, base: str, most: int = 200) -> float:
    """Mean cosine between adapters of a base, from the sketches of the first few hundred."""
    import numpy as np

    from loracomp.retrieval.filters import Compare

    ids = [row["id"] for row in collection.index.scan(Compare("base", "=", base), ("id",))][:most]
    if len(ids) < 3:
        return 0.0
    rows = np.stack([row["v_update"] for row in collection.index.get(ids)])
    products = rows @ rows.T
    return float((products.sum() - np.trace(products)) / (len(ids) * (len(ids) - 1)))
