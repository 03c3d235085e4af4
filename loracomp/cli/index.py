"""``loracomp index``: build an index of adapters, search it, look after it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loracomp.cli.index_drawing import Draw, Drawn, Picture, check_drawable, draw_all, write_strip
from loracomp.cli.screen import Json, emit_json, emit_table, steps_bar
from loracomp.errors import UsageError

if TYPE_CHECKING:
    from loracomp.retrieval.building import BuildReport
    from loracomp.retrieval.filters import Filter
    from loracomp.retrieval.search import Answer, Searcher

app = typer.Typer(
    help="Find LoRAs by what their weights do: build an index, search it.", no_args_is_help=True
)

Place = Annotated[Path, typer.Option("--index", help="Folder of the index.")]
Server = Annotated[
    str | None,
    typer.Option(envvar="LORACOMP_SERVER", help="postgresql://… where a server holds the index."),
]
Where = Annotated[
    str | None, typer.Option(help="Filter, such as \"rank <= 16 and licence in ('MIT', 'CC0-1.0')\".")
]
BaseFolder = Annotated[
    Path | None, typer.Option(help="The base in diffusers format, for its text encoder; glyph has its own.")
]
_DEFAULT = Path("loracomp-index")


@contextmanager
def opened(place: Path, server: str | None, create: bool = False) -> Iterator[Any]:
    """The collection in a folder, with the encoders that ship."""
    from loracomp.retrieval.collection import Collection
    from loracomp.retrieval.encoder import shipped_encoders

    collection = Collection(place, server, create=create, encoders=shipped_encoders(place))
    try:
        yield collection
    finally:
        collection.close()


@app.command()
def build(
    folders: Annotated[list[Path], typer.Argument(help="Folders of LoRA files, nested ones too, or files.")],
    index: Place = _DEFAULT,
    base: Annotated[str | None, typer.Option(help="The base they must fit; recognised if left out.")] = None,
    base_folder: BaseFolder = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; all cores if left out.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try files again that failed before.")] = False,
    draw: Draw = False,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Read LoRAs into an index; files that have not changed are not opened, and a stopped build goes on."""
    from loracomp.retrieval.building import build as make

    if base_folder and not base:
        raise UsageError("--base-folder needs --base: say which base it is, such as --base sdxl")
    if draw:
        check_drawable(base, base_folder)
    for folder in folders:
        if not folder.exists():
            raise UsageError(f"{folder}: no such folder; name the folder that holds the LoRA files")
    start = time.monotonic()
    with (
        opened(index, server, create=True) as collection,
        steps_bar("indexing", as_json, "file") as progress,
    ):
        report = make(
            folders,
            collection,
            base=base,
            base_folder=base_folder,
            jobs=jobs,
            retry=retry,
            progress=progress,
        )
        pictures = draw_all(collection, base, base_folder, as_json) if draw else Drawn()
        report.version = collection.index.stats()["version"]
    seconds = time.monotonic() - start
    if as_json:
        more = pictures.to_dict() if draw else {}
        emit_json({"index": str(index), **report.to_dict(), **more, "seconds": round(seconds, 2)})
    else:
        _print_build(report, index, seconds)
        pictures.print()
    if report.dead and not report.rows:
        raise typer.Exit(4)
    pictures.check()


def _print_build(report: BuildReport, index: Path, seconds: float) -> None:
    for why in report.dead.values():
        typer.echo(f"✗ {why}")
    numbers = {
        "new": report.added,
        "renewed": report.renewed,
        "copies": report.copies,
        "unchanged": report.unchanged,
        "not readable": len(report.dead),
    }
    counted = ", ".join(f"{count} {what}" for what, count in numbers.items() if count)
    typer.echo(f"{report.files} files: {counted}; {seconds:.1f} s")
    typer.echo(f"{index}: {report.rows} adapters, version {report.version}")


@app.command()
def search(
    text: Annotated[str, typer.Argument(help="What is wanted, in words.")] = "",
    image: Annotated[Path | None, typer.Option(help="A picture of what is wanted.")] = None,
    like: Annotated[str | None, typer.Option(help="A LoRA file, or one of the index by id or name.")] = None,
    index: Place = _DEFAULT,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=200, help="How many at most.")] = 10,
    base: Annotated[str | None, typer.Option(help="Base they must be for.")] = None,
    base_folder: BaseFolder = None,
    licence: Annotated[str | None, typer.Option(help="Licence they must claim.")] = None,
    where: Where = None,
    weights_only: Annotated[
        bool, typer.Option("--weights-only", help="Leave out what the files' headers claim.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Show what each score is made of.")] = False,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Find adapters by words, by a picture, or like another one; exit code 1 where there are none."""
    from loracomp.cli.pictures import describer, open_picture

    if sum((bool(text), image is not None, like is not None)) != 1:
        raise UsageError("say what to look for: a text, --image FILE or --like ADAPTER, one of them")
    with opened(index, server) as collection:
        searcher = searching(collection, base, base_folder)
        limits = _limits(base, licence, where)
        if like is not None:
            answer = searcher.like(like, count, limits)
        elif image is not None:
            answer = searcher.image(open_picture(image), count, limits, base, describer)
        else:
            answer = searcher.text(text, count, limits, base, words=not weights_only)
    if as_json:
        emit_json(_answer(answer))
    else:
        _print_answer(answer, explain)
    if not answer.hits:
        raise typer.Exit(1)


def searching(collection: Any, base: str | None, base_folder: Path | None) -> Searcher:
    """A searcher over an open collection."""
    from loracomp.retrieval.search import Searcher

    folders = {base or "glyph": base_folder} if base_folder else {}
    return Searcher(collection, collection.encoders, folders)


def _limits(base: str | None, licence: str | None, where: str | None) -> Filter | None:
    from loracomp.retrieval.filters import both, compare, parse

    parts: list[Filter] = [parse(where)] if where else []
    parts += [compare("base", "=", base)] if base else []
    parts += [compare("licence", "=", licence)] if licence else []
    return both(*parts) if parts else None


def _answer(answer: Answer) -> dict[str, Any]:
    return {
        "base": answer.base,
        "used": answer.used,
        "confidence": round(answer.confidence, 4),
        "notes": answer.notes,
        "hits": [
            {"score": round(hit.score, 4), "explain": dict(hit.explain), "version": hit.version, **hit.row}
            for hit in answer.hits
        ],
    }


def _print_answer(answer: Answer, explain: bool) -> None:
    rows = []
    for place, hit in enumerate(answer.hits, 1):
        made = ", ".join(f"{k} {v:.3g}" for k, v in hit.explain.items()) if explain else hit.row["licence"]
        rows.append((place, f"{hit.score:.3f}", hit.row["name"], hit.row["base"], hit.row["rank"], made))
    emit_table("", ["", "score", "name", "base", "rank", "made of" if explain else "licence"], rows)
    typer.echo(f"by {', '.join(answer.used) or 'nothing'}; confidence of the first {answer.confidence:.0%}")
    for note in answer.notes:
        typer.echo(f"note: {note}", err=True)


@app.command()
def show(
    adapter: Annotated[str, typer.Argument(help="Id, start of an id, path or name.")],
    picture: Picture = None,
    index: Place = _DEFAULT,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Show all that the index knows of an adapter."""
    from loracomp.retrieval.making import was_drawn

    with opened(index, server) as collection:
        row = dict(collection.find(adapter))
        if picture:
            write_strip(picture, row["name"], collection.pictures(row["id"]))
    row["drawn"] = was_drawn(row)
    if as_json:
        emit_json(row)
    else:
        emit_table("", ["", ""], row.items())


@app.command()
def stats(index: Place = _DEFAULT, server: Server = None, as_json: Json = False) -> None:
    """Say how much is in an index, for which bases, and what could not be read."""
    from loracomp.retrieval.making import was_drawn

    with opened(index, server) as collection:
        counts: dict[str, int] = {}
        drawn = 0
        for row in collection.index.scan(columns=("base", "encoder")):
            counts[row["base"]] = counts.get(row["base"], 0) + 1
            drawn += was_drawn(row)
        dead = {seen.path: seen.error for seen in collection.journal.dead()}
        facts = {
            **collection.index.stats(),
            "bases": counts,
            "drawn": drawn,
            "text_probes": sorted(collection.banks),
            "encoders": {base: encoder.name for base, encoder in collection.encoders.items()},
            "shards": len(collection.store.shards),
            "not_readable": dead,
        }
    if as_json:
        emit_json(facts)
        return
    shown = [(name, value) for name, value in facts.items() if name != "not_readable"]
    emit_table("", ["", ""], [*shown, ("not readable", len(dead))])
    for why in dead.values():
        typer.echo(f"✗ {why}")


@app.command()
def remove(
    adapters: Annotated[list[str] | None, typer.Argument(help="Ids, paths or names.")] = None,
    index: Place = _DEFAULT,
    where: Where = None,
    missing: Annotated[bool, typer.Option("--missing", help="Those whose file is gone.")] = False,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Take adapters out of an index; their files stay. Exit code 1 where there was nothing to remove."""
    from loracomp.retrieval.building import remove as take
    from loracomp.retrieval.filters import parse

    if sum((bool(adapters), where is not None, missing)) != 1:
        raise UsageError("say what to remove: ids or names, --where FILTER or --missing, one of them")
    with opened(index, server) as collection:
        if adapters:
            ids = [collection.find(adapter)["id"] for adapter in adapters]
        else:
            rows = collection.index.scan(*([parse(where)] if where else []), columns=("id", "path"))
            ids = [row["id"] for row in rows if where or not Path(row["path"]).is_file()]
        version = take(collection, ids) if ids else collection.index.stats()["version"]
    if as_json:
        emit_json({"removed": ids, "version": version})
    else:
        typer.echo(f"{len(ids)} removed; version {version}")
    if not ids:
        raise typer.Exit(1)


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="Parquet file to write; any engine restores it.")],
    index: Place = _DEFAULT,
    server: Server = None,
    as_json: Json = False,
) -> None:
    """Write all rows and vectors of an index as one Parquet file."""
    if not out.parent.is_dir() or out.is_dir():
        raise UsageError(f"{out}: cannot be written; name a file in a folder that exists")
    with opened(index, server) as collection:
        collection.index.snapshot(out)
        rows = collection.index.stats()["rows"]
    if as_json:
        emit_json({"file": str(out), "rows": rows})
    else:
        typer.echo(f"{out}: {rows} adapters")
