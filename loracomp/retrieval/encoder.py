"""The learned encoder as it ships: its towers, their calibration, and the file that holds them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from math import exp
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loracomp.errors import FormatError, ResourceError
from loracomp.formats import shipped_folder
from loracomp.retrieval.bank import token_states
from loracomp.retrieval.features import VERSION, Features
from loracomp.retrieval.said import TokenStates
from loracomp.retrieval.towers import (
    OUT,
    PICTURE,
    AdapterTower,
    Batch,
    DrawnTower,
    EncoderConfig,
    Eyes,
    ImageTower,
    TextTower,
    batch,
)
from loracomp.retrieval.words import content

FORMAT = 3
_ROWS = 64
_LEVELS = 127
_TINY = 1e-6
_SCALE, _PLAIN = ".scale", "drawn.plain"


@dataclass(frozen=True)
class Calibration:
    """Probability that a best match is one: 1 / (1 + exp(−(slope · cosine + offset)))."""

    slope: float = 20.0
    offset: float = -8.0

    def __call__(self, score: float) -> float:
        """The probability for a cosine."""
        return 1 / (1 + exp(-max(min(self.slope * score + self.offset, 50.0), -50.0)))


class Towers(nn.Module):
    """The networks, the part that all texts share, and the temperature of their training.

    Attributes:
        adapter: Reads weights; None where the configuration leaves it out.
        drawn: Reads what adapters draw; None likewise.
        share: How much what weights say counts beside what is drawn; validation chooses it.
    """

    common: Tensor
    share: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.eyes = Eyes()
        self.adapter = AdapterTower(config) if config.weights else None
        self.drawn = DrawnTower(self.eyes.width) if config.drawn else None
        self.text = TextTower(max(config.text_width, 1))
        self.image = ImageTower(self.eyes.width)
        self.register_buffer("common", torch.zeros(max(config.text_width, 1)))
        self.register_buffer("share", torch.ones(()))
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def images(self, pictures: Tensor) -> Tensor:
        """Unit vectors (n, 512) of pictures (n, 3, 64, 64) in [0, 1]."""
        return self.image(self.eyes(pictures))

    def drawings(self, drawn: Tensor) -> Tensor:
        """Unit vectors (n, 512) of what adapters draw, (n, 8, 3, 64, 64) in [0, 1]."""
        assert self.drawn is not None
        seen = self.eyes(drawn.flatten(0, 1)).unflatten(0, drawn.shape[:2])
        return self.drawn(seen, self.eyes(self.drawn.plain))

    def adapters(self, rows: Batch) -> Tensor:
        """Unit vectors (n, 512): of weights and drawings together, or of what there is; else NaN."""
        found, read = self.readings(rows)
        return self.joined(found, read, rows)

    def readings(self, rows: Batch) -> tuple[Tensor | None, Tensor | None]:
        """Unit vectors of what is drawn and of what weights say; None for what is not there."""
        read = self.adapter(rows) if self.adapter is not None else None
        if self.drawn is None or rows.drawn is None:
            return None, read
        return self.drawings(rows.drawn.to(self.log_scale.dtype) / 255), read

    def joined(self, found: Tensor | None, read: Tensor | None, rows: Batch) -> Tensor:
        """Both readings as one; a reading of weights that found nothing to read (NaN) does not count."""
        if found is None or rows.shown is None:
            return read if read is not None else torch.full((len(rows), OUT), torch.nan)
        other = torch.full_like(found, torch.nan) if read is None else read
        both = found if read is None else F.normalize(found + self.share * read.nan_to_num(), dim=1)
        return torch.where(rows.shown[:, None], both, other)

    def scale(self) -> Tensor:
        """What cosines are multiplied by, at most 100 (CLIP, arXiv:2103.00020, §2.5)."""
        return self.log_scale.exp().clamp(max=100.0)


@dataclass
class LearnedEncoder:
    """Towers ready for use; see :class:`loracomp.retrieval.search.QueryEncoder`.

    Attributes:
        towers: The networks.
        calibration: Of the cosine between a text and an adapter.
        name: Identity of the weights.
        states: The base's text encoder; read from the shipped base where None.
        words: Words that it was trained with; empty where that is not known.
    """

    towers: Towers
    calibration: Calibration = field(default_factory=Calibration)
    name: str = ""
    states: TokenStates | None = None
    words: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.towers.eval()
        if not self.name:
            state = hashlib.sha256()
            for key, values in sorted(_packed(self.towers).items()):
                state.update(key.encode() + values.numpy().tobytes())
            self.name = state.hexdigest()[:12]

    @property
    def base(self) -> str:
        """Base whose adapters it reads."""
        return self.towers.config.base

    @torch.no_grad()
    def adapters(self, features: Sequence[Features]) -> Tensor:
        """Unit vectors (adapters, 512); NaN for those of which it can read nothing."""
        width = self.towers.config.text_width
        parts = [
            self.towers.adapters(batch(features[start : start + _ROWS], width))
            for start in range(0, len(features), _ROWS)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (texts, 512)."""
        if self.states is None:
            folder = shipped_folder(self.base)
            if folder is None:
                raise ResourceError(f"{self.base}: its text encoder is needed; name the base's folder")
            self.states = token_states(self.base, folder)
        return self.towers.text(self.states(texts).minus(self.towers.common))

    @torch.no_grad()
    def images(self, images: Sequence[Any]) -> Tensor:
        """Unit vectors (images, 512) of PIL images."""
        return self.towers.images(torch.stack([picture(image) for image in images]))

    def confidence(self, score: float) -> float:
        """Calibrated probability that a best match of this cosine is one."""
        return self.calibration(score)

    def knows(self, text: str) -> float:
        """Share of a text's words that it was trained with, in [0, 1]."""
        wanted = content(text)
        return len(wanted & self.words) / len(wanted) if wanted and self.words else 1.0

    def save(self, path: Path) -> None:
        """Writes the encoder, matrices as integers of eight bits."""
        from safetensors.torch import save_file

        said = {
            "format": FORMAT,
            "features": VERSION,
            "config": asdict(self.towers.config),
            "calibration": asdict(self.calibration),
            "words": " ".join(sorted(self.words)),
        }
        save_file(_packed(self.towers), path, {"loracomp.encoder": json.dumps(said, sort_keys=True)})


def _packed(towers: Towers) -> dict[str, Tensor]:
    """The networks as they ship: matrices as bytes, a scale for each row, pictures as bytes, the rest halved.

    Packing what :func:`_unpacked` gives changes nothing.
    """
    matrices = {key for key, values in towers.named_parameters() if values.ndim > 1}
    out = {}
    for key, values in towers.state_dict().items():
        if key in matrices:
            rows = values.detach().cpu().float()
            rows = rows.flatten(1) if rows.ndim > 3 else rows
            scale = (rows.abs().amax(-1, keepdim=True) / _LEVELS).clamp_min(_TINY).half()
            out[key] = (
                (rows / scale.float()).round().clamp(-_LEVELS, _LEVELS).to(torch.int8).view(values.shape)
            )
            out[key + _SCALE] = scale
        elif key == _PLAIN:
            out[key] = (values.cpu() * 255).round().to(torch.uint8).contiguous()
        else:
            out[key] = values.detach().cpu().half().contiguous()
    return out


def _unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out = {}
    for key, values in tensors.items():
        if key.endswith(_SCALE):
            continue
        out[key] = values.float() / (255 if key == _PLAIN else 1)
        if key + _SCALE in tensors:
            scale = tensors[key + _SCALE].float()
            out[key] = out[key] * scale.view(*scale.shape[:-1], *(1,) * (values.ndim - scale.ndim + 1))
    return out


def picture(image: Any) -> Tensor:
    """A PIL image as (3, 64, 64) in [0, 1]; transparent parts become white, other shapes are padded white."""
    import numpy as np
    from PIL import Image, ImageOps

    flat = Image.new("RGBA", image.size, "white")
    flat.alpha_composite(image.convert("RGBA"))
    square = ImageOps.pad(flat.convert("RGB"), (PICTURE, PICTURE), Image.Resampling.BICUBIC, "white")
    return torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1).float() / 255


def load_encoder(path: Path) -> LearnedEncoder:
    """The encoder that :meth:`LearnedEncoder.save` wrote; raises :class:`FormatError` for anything else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            said = json.loads((file.metadata() or {})["loracomp.encoder"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if (said["format"], said["features"]) != (FORMAT, VERSION):
            raise FormatError(f"{path}: an encoder of another version; train it again")
        towers = Towers(EncoderConfig(**said["config"]))
        towers.load_state_dict(_unpacked(tensors))
        words = frozenset(str(said["words"]).split())
        return LearnedEncoder(towers, Calibration(**said["calibration"]), words=words)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        line = str(error).strip().splitlines()[0]
        raise FormatError(f"{path}: not an encoder ({line}); train it again") from error


def shipped_encoders(folder: Path | None = None) -> dict[str, LearnedEncoder]:
    """Encoders by base: those in a collection's folder ``encoders``, else those that ship."""
    places = [Path(str(files("loracomp"))) / "assets" / "encoder"]
    if folder is not None:
        places.append(folder / "encoders")
    found: Mapping[str, Path] = {
        path.stem: path for place in places for path in sorted(place.glob("*.safetensors"))
    }
    return {base: load_encoder(path) for base, path in found.items()}
