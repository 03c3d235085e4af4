"""From terms to programs: block weights as the extension means them, profiles, variants, files."""

from __future__ import annotations

import pytest
import torch

from loracomp.adapter import Adapter
from loracomp.bases import modules
from loracomp.errors import UsageError
from loracomp.fusion import Curve, Profile, Program
from loracomp.fusion.blocks import lookup
from loracomp.fusion.blockweights import PRESETS, blocks_of
from loracomp.fusion.syntax import parse_term
from loracomp.fusion.variants import fitted, profile_of, program_of, read_variants
from loracomp.lowrank import LowRank

LATE = Curve(((0, 0), (0.3, 1)))

# LoRA Block Weight

SD15 = {
    "BASE": "text_encoder.text_model.encoder.layers.3.mlp.fc1",
    "IN00": "unet.conv_in",
    "IN01": "unet.down_blocks.0.attentions.0.proj_in",
    "IN03": "unet.down_blocks.0.downsamplers.0.conv",
    "IN05": "unet.down_blocks.1.resnets.1.conv1",
    "IN11": "unet.down_blocks.3.resnets.1.conv1",
    "M00": "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "OUT02": "unet.up_blocks.0.upsamplers.0.conv",
    "OUT03": "unet.up_blocks.1.attentions.0.proj_in",
    "OUT11": "unet.up_blocks.3.attentions.2.proj_out",
}
IDS = ["BASE", *(f"IN{n:02}" for n in range(12)), "M00", *(f"OUT{n:02}" for n in range(12))]
SHORT = [name for name in IDS if name not in {"IN00", "IN03", "IN06", "IN09", "IN10", "IN11"}]
SHORT = [name for name in SHORT if name not in {"OUT00", "OUT01", "OUT02"}]


@pytest.mark.parametrize(("identifier", "path"), SD15.items())
def test_lists_of_block_weights_name_the_blocks_of_the_extension(identifier: str, path: str) -> None:
    assert path in modules("sd15")
    for identifiers in (IDS, SHORT):
        numbers = ",".join(str(10 + index) for index in range(len(identifiers)))
        expected = 10.0 + identifiers.index(identifier) if identifier in identifiers else 0.0
        assert lookup(path, blocks_of(numbers, modules("sd15"))) == expected


@pytest.mark.parametrize(
    ("base", "count"), [("sd15", 17), ("sd15", 26), ("sdxl", 12), ("sdxl", 20), ("flux", 61)]
)
def test_as_many_numbers_as_the_extension_takes(base: str, count: int) -> None:
    ones = blocks_of(",".join(["1"] * count), modules(base))
    attention = [p for p in modules(base) if ".attentions." in p or "transformer_blocks" in p]
    assert {lookup(path, ones) for path in attention} == {1.0}
    with pytest.raises(UsageError, match=rf"{count + 1} numbers, where this base has .*{count}"):
        blocks_of(",".join(["1"] * (count + 1)), modules(base))


def test_presets_are_the_extension_s_lists() -> None:
    lists = {
        "INS": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
        "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
        "INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0",
        "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
        "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
        "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
        "OUTALL": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1",
        "ALL0.5": ",".join(["0.5"] * 17),
        "NONE": ",".join(["0"] * 17),
    }
    paths = [p for p in modules("sd15") if ".attentions." in p or p.startswith("text_encoder")]
    assert set(lists) <= set(PRESETS)
    for preset, numbers in lists.items():
        short, full = (blocks_of(lbw, modules("sd15")) for lbw in (preset, numbers))
        assert all(lookup(path, short) == lookup(path, full) for path in paths), preset


@pytest.mark.parametrize(
    ("lbw", "base", "says"),
    [
        ("INSIDE", "sd15", "no such preset"),
        ("MIDD", "flux", "no such preset here"),
        ("1,R,1,1,1,1,1,1,1,1,1,1", "sdxl", "'R' is not a number"),
        ("1,1,1", "sd3", "name the blocks"),
    ],
)
def test_block_weights_that_mean_nothing_here_are_refused(lbw: str, base: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        blocks_of(lbw, modules(base))


# From terms to programs


def adapter(*paths: str, base: str = "sd15", **more: object) -> Adapter:
    layer = LowRank(torch.zeros(1, 2), torch.zeros(2, 1))
    return Adapter(dict.fromkeys(paths, layer), base, "a", **more)  # type: ignore[arg-type]


def test_block_weights_leave_out_what_the_adapter_does_not_have() -> None:
    whole = adapter(SD15["BASE"], SD15["IN01"], SD15["OUT11"])
    assert profile_of(parse_term("a:1:lbw=OUTS"), whole).blocks == {"*": 0, "text": 1, "up.3.2": 1}
    assert profile_of(parse_term("a:1:lbw=OUTS:up.3=0.5"), adapter(SD15["IN01"])).blocks == {
        "*": 0,
        "up.3": 0.5,
    }
    only_text = profile_of(parse_term("a:0.7:0"), whole)
    assert [lookup(SD15[name], only_text.blocks) for name in ("BASE", "IN01")] == [1, 0]


def test_plain_strengths_need_no_profiles() -> None:
    two = [adapter(SD15["IN01"])] * 2
    plain = program_of([parse_term("a:0.5"), parse_term("b")], two, "switch", {"period": 0.5})
    assert plain == Program("switch", (0.5, 1.0), {"period": 0.5})
    shaped = program_of([parse_term("a@0.3.."), parse_term("b")], two, "merge", {})
    assert shaped == Program("merge", (1.0, 1.0), profiles=(Profile(LATE), Profile()))


def test_variants_are_all_combinations() -> None:
    found = read_variants(["weight=mono:0,1", "method=merge,switch"], ["cat", "dir/mono.safetensors"])
    start = Program("composite", (0.3, 0.4))
    assert [variant.of(start) for variant in found] == [
        Program(method, (0.3, weight)) for weight in (0.0, 1.0) for method in ("merge", "switch")
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("weight=cat", r"write weight=NAME:0,0.5,1 \(column 8\)"),
        ("weight=dog:1", "unknown adapter in --vary weight=dog:1 'dog'"),
        ("weight=cat:1,x", r"weight 'x' is not a number \(column 14\)"),
        ("method=swich", "did you mean switch"),
        ("seed=1,2", "write weight=NAME"),
    ],
)
def test_variants_that_mean_nothing_are_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read_variants([text], ["cat"])


def test_a_program_from_a_file_has_to_fit() -> None:
    one = adapter(SD15["IN01"])
    with pytest.raises(UsageError, match=r"p\.json: 2 weights for 1 adapters"):
        fitted(Program(weights=(1.0, 1.0)), [one], "p.json")
    with pytest.raises(UsageError, match="1 weights for 2 adapters"):
        fitted(Program(weights=(1.0,)), [one, one], "p.json")
    assert fitted(Program(), [one, one], "p.json").weights == (1.0, 1.0)
