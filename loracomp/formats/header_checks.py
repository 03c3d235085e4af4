"""Checks of a file's header: identity, base, rank, licence."""

from __future__ import annotations

import json
from collections.abc import Iterator

from loracomp.bases import BASES
from loracomp.formats.checks import CHECKS, converting
from loracomp.formats.gate import printable
from loracomp.formats.report import Report
from loracomp.formats.thumbnail import KEY, decoded

_MUST = ("sai_model_spec", "architecture", "implementation", "title", "resolution")
_JSON_KEYS = (
    "ss_tag_frequency",
    "ss_bucket_info",
    "ss_dataset_dirs",
    "ss_network_args",
    "lora_adapter_metadata",
)


@CHECKS.register("hash", summary="hashes in the header that are not those of the tensors")
def stated_hash(report: Report) -> Iterator[tuple[str, str, str]]:
    """The tensors were changed after the header was written, or the header was copied."""
    for key in ("sshs_model_hash", "modelspec.hash_sha256"):
        stated = report.metadata.get(key, "").lower().removeprefix("0x")
        if stated and stated != report.hashes["sshs_model_hash"]:
            what = f"the header's {key} is not the hash of the tensors: they were changed, or it was copied"
            yield "warning", what, f"{converting()}, which writes the right one"


@CHECKS.register("claims", summary="a header that names another base than the tensors fit")
def claims(report: Report) -> Iterator[tuple[str, str, str]]:
    """Silent loading on a wrong base is the worst of errors; the tensors decide here."""
    row = BASES.get(report.base)
    if row is None:
        return
    stated = report.metadata.get("modelspec.architecture", "").removesuffix("/lora")
    version = report.metadata.get("ss_base_model_version", "")
    others = {name for name, other in BASES.items() if stated == other.architecture}
    others |= {name for name, other in BASES.items() if version == other.kohya_version}
    claimed = sorted(others - {report.base})
    if claimed and report.confidence > 0.5:
        what = f"the header says it is for {' and '.join(claimed)}, the tensors fit {report.base}"
        yield "warning", what, f"{converting()}, which states the base that fits"


@CHECKS.register("rank", summary="a rank in the header that no layer has")
def rank(report: Report) -> Iterator[tuple[str, str, str]]:
    """Readers that show ss_network_dim show a wrong one."""
    stated = report.metadata.get("ss_network_dim", "")
    ranks = {row.rank for row in report.rows}
    plain = all(row.algebra == "lora" for row in report.rows)
    if stated.isdigit() and plain and report.rows and int(stated[:9]) not in ranks:
        yield (
            "note",
            f"the header says rank {printable(stated)}, the layers have {sorted(ranks)}",
            converting(),
        )


@CHECKS.register("metadata", summary="header entries that are missing or cannot be read")
def metadata(report: Report) -> Iterator[tuple[str, str, str]]:
    """Entries that ModelSpec requires, and JSON texts that are none."""
    missing = [key for key in _MUST if f"modelspec.{key}" not in report.metadata]
    if missing:
        yield "note", f"the header lacks modelspec.{', '.join(missing)}", f"{converting()}, which writes them"
    for key in _JSON_KEYS:
        try:
            json.loads(report.metadata.get(key, "{}"))
        except (ValueError, RecursionError):
            yield "warning", f"the header's {key} is not valid JSON", "remove or mend it"


@CHECKS.register("thumbnail", summary="a picture in the header that is none")
def picture(report: Report) -> Iterator[tuple[str, str, str]]:
    """An entry that galleries cannot show, or should not open."""
    if KEY in report.metadata:
        try:
            decoded(report.metadata[KEY])
        except ValueError as error:
            yield "warning", f"the thumbnail {error}", converting("--thumbnail PICTURE")


@CHECKS.register("licence", summary="no licence in the header")
def licence(report: Report) -> Iterator[tuple[str, str, str]]:
    """Whether others may use or merge it is not stated."""
    stated = report.metadata.get("modelspec.license", "").strip()
    if stated:
        yield "note", f"licence: {printable(stated)}", "nothing to do"
    else:
        yield (
            "note",
            "no licence is stated",
            "ask its author, or state yours: loracomp convert --set modelspec.license=…",
        )
