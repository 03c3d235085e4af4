"""Keys: an owner's master key, and one key per LoRA and user that is derived from it.

The master key is 32 random bytes. HKDF (RFC 5869) over ``loracomp/wm/v1``, the LoRA, the user and a
counter gives each issued key its secret, from which message, carriers, gauge, salt and signing key follow;
no list of secrets is kept. Whoever has an issued key can verify and forge that mark, and no other.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from loracomp.errors import UsageError
from loracomp.watermark.stream import frame, octets
from loracomp.watermark.tails import balanced_weights

BITS = 32
TRIES = 10_000


@dataclass(frozen=True)
class OwnerKey:
    """An owner's master key; printing it shows nothing of it."""

    master: bytes = field(repr=False)

    @classmethod
    def create(cls) -> OwnerKey:
        """A new one, from the operating system's randomness."""
        return cls(secrets.token_bytes(32))

    def derive(self, lora: str, user: str, counter: int, bits: int = BITS) -> Key:
        """The key of one LoRA and user at one count, whether or not it may be issued."""
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        parts = (b"loracomp/wm/v1", lora.encode(), user.encode(), str(counter).encode())
        info = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        secret = HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(self.master)
        return Key(lora, user, counter, bits, secret)

    def issue(
        self,
        lora: str,
        user: str = "",
        bits: int = BITS,
        others: Sequence[Key] = (),
        screen: Callable[[Key], bool] | None = None,
    ) -> Key:
        """The first key of a LoRA and user that follows the rules; the counter says how many did not.

        Args:
            lora: What the LoRA is called.
            user: Whom the copy is for; empty for the owner.
            bits: Length L of the message.
            others: Keys issued before; messages differ in at least L/4 bits.
            screen: Whether a key scores no higher on unmarked pictures than it should.

        Raises:
            UsageError: No name, an impossible length, or no key follows the rules.
        """
        if not lora or not 8 <= bits <= 256:
            raise UsageError(f"a key needs the name of its LoRA and 8 to 256 bits, not {lora!r} and {bits}")
        for counter in range(TRIES):
            key = self.derive(lora, user, counter, bits)
            if key.balanced and key.distant(others) and (screen is None or screen(key)):
                return key
        raise UsageError(
            f"{lora}: no key keeps its distance from the {len(others)} others and passes screening; "
            "use more bits"
        )


@dataclass(frozen=True)
class Key:
    """The key of one LoRA's mark; printing it shows nothing secret.

    Attributes:
        lora: What the LoRA is called.
        user: Whom the copy is for; empty for the owner.
        counter: Which draw it is.
        bits: Length L of the message.
        secret: 32 bytes.
    """

    lora: str
    user: str
    counter: int
    bits: int
    secret: bytes = field(repr=False)

    @cached_property
    def message(self) -> Tensor:
        """(bits,) int64 of 0 and 1."""
        raw = octets(self.secret, "message", -(-self.bits // 8))
        return torch.tensor([(raw[i // 8] >> (i % 8)) & 1 for i in range(self.bits)])

    @property
    def balanced(self) -> bool:
        """Whether the message's weight lies in [0.40 L, 0.60 L]."""
        low, high = balanced_weights(self.bits)
        return low <= int(self.message.sum()) <= high

    def distant(self, others: Sequence[Key]) -> bool:
        """Whether the message differs from those of the same length in at least L/4 bits."""
        same = [other for other in others if other.bits == self.bits]
        return all(4 * int((self.message != other.message).sum()) >= self.bits for other in same)

    def carriers(self, dimensions: int) -> Tensor:
        """Orthonormal codes qᵢ of the bits, (bits, dimensions) float64, uniform among all frames."""
        return _carriers(self.secret, self.bits, dimensions)

    def direction(self, dimensions: int) -> Tensor:
        """v = L^-½ Σ (2mᵢ - 1) qᵢ, a unit vector (dimensions,) that is uniform over keys, float64."""
        return _direction(self, dimensions)

    @property
    def salt(self) -> bytes:
        """256 bits that keep the short message from being guessed from the commitment."""
        return octets(self.secret, "salt", 32)

    @property
    def commitment(self) -> str:
        """SHA-256 over salt, message and carriers' seed: says that the key exists, and nothing of it."""
        message = bytes(self.message.tolist())
        seed = octets(self.secret, "carriers", 32)
        return hashlib.sha256(self.salt + message + seed).hexdigest()

    @property
    def gauge_seed(self) -> bytes:
        """Seed of the copy's own gauge and order of ranks."""
        return octets(self.secret, "gauge", 32)

    @property
    def signing_seed(self) -> bytes:
        """Seed of the Ed25519 key that signs the LoRA's manifest."""
        return octets(self.secret, "sign", 32)

    def spellings(self) -> tuple[str, ...]:
        """How secrets of this key would look in text, for tests that search outputs for them."""
        raws = (self.secret, self.salt, self.gauge_seed, self.signing_seed)
        word = "".join(map(str, self.message.tolist()))
        return (*(raw.hex() for raw in raws), *(base64.b64encode(raw).decode() for raw in raws), word)


@lru_cache(maxsize=128)
def _carriers(secret: bytes, bits: int, dimensions: int) -> Tensor:
    return frame(secret, f"carriers/{dimensions}", bits, dimensions)


@lru_cache(maxsize=4096)
def _direction(key: Key, dimensions: int) -> Tensor:
    signs = 2.0 * key.message.double() - 1
    return signs @ key.carriers(dimensions) / key.bits**0.5
