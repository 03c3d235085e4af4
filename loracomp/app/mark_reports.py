"""What a verdict means, as a person reads it: what it proves, what it does not, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loracomp.watermark.attribution import Part
    from loracomp.watermark.manifest import Proof
    from loracomp.watermark.verdict import Verdict


@dataclass(frozen=True)
class MarkReport:
    """A report.

    Attributes:
        outcome: ``verified``, ``no evidence`` or ``inconclusive``; of manifests ``valid``, ``none``, …
        headline: The outcome in a sentence.
        proves: What follows from it.
        limits: What does not follow from it.
        sure: How sure it is.
        facts: (what, value) for a table.
        notes: What was done to read the pictures.
        data: The same for machines.
    """

    outcome: str
    headline: str
    proves: str
    limits: str
    sure: str
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    data: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self)


def odds(p: float) -> str:
    """A small probability in words; an exact zero is below what can be computed."""
    if p >= 0.1:
        return f"{p:.0%} of the time"
    if p <= 1e-15:
        return "less than once in 1,000,000,000,000,000 times"
    return f"once in {float(f'{1 / p:.2g}'):,.0f} times"


def of_verdict(verdict: Verdict, lora: str, notes: Sequence[str], proof: Proof | None) -> MarkReport:
    """The report on pictures and a key."""
    pictures = f"{verdict.images} picture{'s' if verdict.images != 1 else ''}"
    lines = {
        "verified": (
            f"These {pictures} carry the mark of {lora}."
            if verdict.images != 1
            else f"This picture carries the mark of {lora}.",
            f"A model that carries this key's mark drew them: {lora}, or something merged from it.",
            "It does not say who drew them, and it says nothing to people who doubt when the key was made; "
            "the dated commitment of the key does.",
        ),
        "no evidence": (
            f"No mark of {lora} was found.",
            "The pictures look as unmarked pictures do.",
            "It is no proof that the LoRA was not used: at low strength, after strong edits or in few "
            "pictures a mark cannot be read.",
        ),
        "inconclusive": (
            "It cannot be told.",
            "Nothing follows from it, neither that the mark is there nor that it is not.",
            "More pictures from the same source, as they were saved, would tell.",
        ),
    }
    headline, proves, limits = lines[verdict.decision]
    return MarkReport(
        outcome=verdict.decision,
        headline=headline,
        proves=proves,
        limits=limits,
        sure=_sure(verdict),
        facts=tuple(_facts(verdict, proof)),
        notes=(*(reason[:1].upper() + reason[1:] for reason in verdict.reasons), *notes),
        data=verdict.to_dict(),
    )


def _sure(verdict: Verdict) -> str:
    if verdict.p is None:
        return "The calibration holds too few unmarked pictures to say how sure this is."
    chance = odds(verdict.p)
    if verdict.decision == "verified":
        return (
            f"Pictures without this mark would match as well {chance}; {odds(verdict.alpha)} was asked for."
        )
    return (
        f"Pictures without this mark match as well {chance}, and at most {odds(verdict.alpha)} was asked for."
    )


def _facts(verdict: Verdict, proof: Proof | None) -> list[tuple[str, str]]:
    score, own = verdict.score, verdict.empirical
    strength = score.strength
    rows = [
        ("pictures that count", str(verdict.images)),
        ("bits that match", f"{score.matches} of {score.bits}"),
        ("strength of the mark", f"{strength.value:.2f} ({strength.low:.2f} to {strength.high:.2f})"),
        ("chance over random keys", f"{verdict.p_random_key:.3g}"),
        ("chance over unmarked pictures", "not known" if own is None else f"{own.p:.3g}"),
    ]
    return rows + ([("manifest of the LoRA", proof.status)] if proof is not None else [])


def of_parts(parts: Sequence[Part], rate: float, notes: Sequence[str]) -> MarkReport:
    """The report on which of several LoRAs drew pictures."""
    named = [part for part in parts if part.named]
    who = " and ".join(_who(part) for part in named)
    return MarkReport(
        outcome="named" if named else "nobody named",
        headline=f"The marks found are those of {who}." if named else "None of your keys' marks was found.",
        proves=(
            "Models that carry these keys' marks drew the pictures."
            if named
            else "The pictures look as unmarked pictures do to every one of your keys."
        ),
        limits=(
            "Of all LoRAs that are named so over time, a share of "
            f"{rate:.1%} may be named wrongly; LoRAs without a key here cannot be named."
        ),
        sure="; ".join(f"{_who(part)}: by chance {odds(part.p_fdr)}" for part in named)
        or f"The likeliest is named where chance alone would name it {odds(rate)}, and none reached that.",
        facts=tuple((_who(part), f"{part.share:.0%} of the mark, p = {part.p:.3g}") for part in parts[:50]),
        notes=tuple(notes),
        data={"loras": [part.to_dict() for part in parts], "rate": rate},
    )


def _who(part: Part) -> str:
    return f"{part.lora} (copy for {part.user})" if part.user else part.lora


_PROOFS: dict[str, tuple[str, str]] = {
    "valid": (
        "The file is signed, and its weights are those that were signed.",
        "The key's holder signed them.",
    ),
    "untrusted": (
        "The file is signed, by a key that nobody here vouches for.",
        "Somebody signed these weights.",
    ),
    "other tensors": ("The signature is genuine, but for other weights.", "The weights were changed since."),
    "forged": (
        "The signature is not that of this key.",
        "Somebody else signed, or the signature was altered.",
    ),
    "damaged": ("The manifest is damaged.", "Nothing follows from it."),
    "none": (
        "The file has no manifest.",
        "Nothing follows from it; most tools drop manifests when they save.",
    ),
}


def of_proof(proof: Proof) -> MarkReport:
    """The report on a LoRA's signed manifest."""
    headline, proves = _PROOFS[proof.status]
    shown = ("lora", "license", "created", "commitment", "method")
    facts = [("signer", proof.signer)] if proof.signer else []
    facts += [(name, str(proof.manifest[name])) for name in shown if proof.manifest.get(name)]
    return MarkReport(
        outcome=proof.status,
        headline=headline,
        proves=proves,
        limits="A manifest says nothing of pictures; the mark in them does.",
        sure="Signatures are exact: there is no chance in it." if proof.manifest else "",
        facts=tuple(facts),
        notes=("the key inside the file proves nothing",) if proof.embedded_key else (),
        data=proof.to_dict(),
    )
