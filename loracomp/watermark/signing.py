"""Ed25519 (RFC 8032): whoever can check a signature cannot make one."""

from __future__ import annotations

import hashlib


def public_key(seed: bytes) -> bytes:
    """The public key (32 bytes) of a private seed (32 bytes)."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    private = Ed25519PrivateKey.from_private_bytes(seed)
    return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def sign(seed: bytes, message: bytes) -> bytes:
    """The signature (64 bytes)."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(seed).sign(message)


def signed_by(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the signature is that of the key's owner."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def print_of(public: bytes) -> str:
    """Sixteen digits that name a public key; to find it by, never to trust it by."""
    return hashlib.sha256(public).hexdigest()[:16]
