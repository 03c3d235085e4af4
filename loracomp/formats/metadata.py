"""Header strings that a written LoRA carries, so that every consumer knows base, strength and identity.

``ss_*`` keys follow sd-scripts, ``modelspec.*`` the ModelSpec 1.0.1 standard, and
``lora_adapter_metadata`` diffusers. No time stamps: equal adapters make equal files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from loracomp.adapter import Adapter
from loracomp.bases import BASES
from loracomp.formats.scales import HEADER_KEY

HASH_KEYS = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
_STALE = (*HASH_KEYS, HEADER_KEY, "format", "ss_network_dim", "ss_network_alpha", "ss_network_module")


def describe(adapter: Adapter, dialect: str, header_alpha: bool) -> dict[str, str]:
    """Metadata of an adapter as it is written, without the hashes.

    Args:
        adapter: The adapter; its own metadata are kept except where the file's facts replace them.
        dialect: Name of the dialect it is written in.
        header_alpha: Whether to state alpha = rank in the header (dialects without alpha tensors).
    """
    kept = {key: value for key, value in adapter.metadata.items() if key not in _STALE}
    facts = {"format": "pt", **_network(adapter, header_alpha), **_base(adapter, dialect)}
    defaults = {"ss_output_name": adapter.name, "modelspec.title": adapter.name}
    if header_alpha:
        facts[HEADER_KEY] = json.dumps(_peft(adapter), sort_keys=True)
    return {**defaults, **_resolution(adapter), **kept, **facts}


def _network(adapter: Adapter, folded: bool) -> dict[str, str]:
    ranks = {layer.rank for layer in adapter.layers.values()}
    alphas = {
        layer.rank if folded or layer.alpha is None else layer.alpha for layer in adapter.layers.values()
    }
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(next(iter(ranks))) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": f"{float(next(iter(alphas))):g}" if len(alphas) == 1 else "Dynamic",
    }


def _base(adapter: Adapter, dialect: str) -> dict[str, str]:
    row = BASES.get(adapter.base)
    architecture = row.architecture if row else adapter.base
    facts = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "sd-scripts" if dialect == "kohya" else "diffusers",
    }
    if row is not None:
        facts |= {"ss_base_model_version": row.kohya_version, "ss_v2": "False"}
        facts |= {"modelspec.prediction_type": "v"} if row.prediction == "v_prediction" else {}
    return facts


def _resolution(adapter: Adapter) -> dict[str, str]:
    row = BASES.get(adapter.base)
    side = row.resolution if row else 512
    return {"modelspec.resolution": f"{side}x{side}"}


def _peft(adapter: Adapter) -> dict[str, Any]:
    """A PEFT configuration per component that says alpha = rank for each layer."""
    config: dict[str, Any] = {}
    for component in adapter.components:
        ranks = {_suffix(path): layer.rank for path, layer in adapter.component(component).items()}
        common = Counter(ranks.values()).most_common(1)[0][0]
        other = {
            f"^{path}" if component in ("unet", "transformer") else path: r
            for path, r in ranks.items()
            if r != common
        }
        config |= {
            f"{component}.r": common,
            f"{component}.lora_alpha": common,
            f"{component}.rank_pattern": other,
            f"{component}.alpha_pattern": other,
            f"{component}.target_modules": sorted(ranks),
        }
    return config


def _suffix(path: str) -> str:
    """A path that names the layer in transformers with and without ``text_model`` in front."""
    return path.removeprefix("text_model.")


def with_hashes(metadata: Mapping[str, str], tensors: str, legacy: str) -> dict[str, str]:
    """Metadata with the hashes of the tensor bytes (hexadecimal SHA-256, legacy digits)."""
    return {
        **metadata,
        "sshs_model_hash": tensors,
        "sshs_legacy_hash": legacy,
        "modelspec.hash_sha256": f"0x{tensors}",
    }
