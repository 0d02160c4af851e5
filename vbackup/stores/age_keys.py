"""Keys of age: recipients, to whom files are sealed, and identities, which open them.

Only native X25519 keys (``age1...`` and ``AGE-SECRET-KEY-1...``, as age-keygen makes them). A copy has to be read in
pieces, from the middle of an object, and sealed again for others without its data: both need the file key itself, which
neither the age program nor a plugin hands out. SSH keys could be read here too, but are left out: age advises against
them, and a header with one shows whom it is for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vbackup.stores import bech32

_RECIPIENT_PREFIX, _IDENTITY_PREFIX = "age", "age-secret-key-"
_KEY_BYTES = 32


@dataclass(frozen=True)
class Recipient:
    """A public key. It is no secret."""

    key: bytes

    def __str__(self) -> str:
        return bech32.encode(_RECIPIENT_PREFIX, self.key)


@dataclass(frozen=True)
class Identity:
    """A secret key, which no message, log or repr has."""

    key: bytes = field(repr=False)

    @property
    def recipient(self) -> Recipient:
        """The public key that belongs to it."""
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        public = X25519PrivateKey.from_private_bytes(self.key).public_key()
        return Recipient(public.public_bytes(Encoding.Raw, PublicFormat.Raw))


def recipient(text: str) -> Recipient:
    """Return the recipient that a text is. Raises ValueError with why it is none that can be used, and what to do."""
    if text.upper().startswith(_IDENTITY_PREFIX.upper()):
        raise ValueError("it is a secret key; 'age-keygen -y FILE' prints the recipient that belongs to it")
    if text.startswith(("ssh-", "ecdsa-", "sk-ssh-")):
        raise ValueError("it is an SSH key, to which vbackup does not seal; 'age-keygen -o FILE' makes a pair of keys")
    try:
        prefix, key = bech32.decode(text)
    except ValueError as err:
        raise ValueError(f"it is no recipient of age, which begins with age1: {err}") from None
    if prefix.startswith("age1"):
        raise ValueError(
            f"it is of an age plugin, or of another kind than X25519 ({prefix.removeprefix('age1')}), to which vbackup"
            " does not seal; 'age-keygen -o FILE' makes a pair of keys"
        )
    if prefix == "age" and len(key) == _KEY_BYTES:
        return Recipient(key)
    raise ValueError("it is no X25519 recipient of age, which 'age-keygen -o FILE' makes")


def identity(text: str) -> Identity:
    """Return the identity that a line is. Raises ValueError as ``recipient``; the message has nothing of the text."""
    if text.startswith("age1"):
        raise ValueError("it is a recipient, which can only seal; the identity begins with AGE-SECRET-KEY-1")
    if text.startswith("AGE-PLUGIN-"):
        raise ValueError("it is of an age plugin, which vbackup does not run: use an identity of age-keygen")
    if text.startswith("-----BEGIN "):
        raise ValueError("it is an SSH key or another PEM file: use an identity of age-keygen")
    try:
        prefix, key = bech32.decode(text)
    except ValueError as err:
        raise ValueError(f"it is no identity of age, which begins with AGE-SECRET-KEY-1: {err}") from None
    if prefix != _IDENTITY_PREFIX or len(key) != _KEY_BYTES:
        raise ValueError("it is no X25519 identity of age, which begins with AGE-SECRET-KEY-1")
    return Identity(key)
