"""The layers of an open LoRA file by position in the site table, and the file's identity, in one pass."""

from __future__ import annotations

from loracomp.errors import FormatError
from loracomp.formats.matching import Match
from loracomp.formats.pieces import split
from loracomp.formats.reading import RANK, unusable
from loracomp.formats.scales import stated
from loracomp.formats.source import Source
from loracomp.formats.updates import UnusableError, low_rank, read
from loracomp.lowrank import LowRank
from loracomp.retrieval.sites import SiteTable


def read_layers(source: Source, matched: Match, table: SiteTable) -> tuple[dict[int, LowRank], str]:
    """Layers by position, and SHA-256 over the tensor bytes, hexadecimal.

    Raises:
        FormatError: A rank beyond the limit, or values that are not finite or cannot be brought into
            factors.
    """
    source.start_hash()
    says = stated(source.metadata, source.path)
    layers: dict[int, LowRank] = {}
    for item in matched.found:
        try:
            update = low_rank(item, read(source, item, says), RANK)[0]
            for path, part in split(update, item.module).items():
                if table.index[path] in layers:
                    raise FormatError(f"{source.label}: the layer {path} is there twice; keep one")
                layers[table.index[path]] = part
        except UnusableError as error:
            raise unusable(source, error) from None
    return layers, source.content_hash()
