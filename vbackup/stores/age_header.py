"""The header of an age file (age-encryption.org/v1): for each recipient, the file key sealed to it.

    age-encryption.org/v1
    -> X25519 SHARE          a public key that was made for this file only
    BODY                     the file key, sealed with what SHARE and the recipient's key have in common
    --- MAC                  of all lines above, by the file key

The data behind it is sealed with the file key, so a new header for other recipients (``make`` with the same key) fits
the data as it is. A header does not show to whom it is sealed; filled up to a fixed length, it does not show to how
many either, and the data of every file begins at the same place. Readers of age files skip what fills it, as they skip
every kind of recipient that they do not know.
"""

from __future__ import annotations

import hmac
import os
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence
from dataclasses import dataclass

from vbackup.stores.age_keys import Identity, Recipient

_VERSION = b"age-encryption.org/v1\n"
_LABEL = b"age-encryption.org/v1/X25519"
_MAC = b"---"
_FILE_KEY_BYTES, _KEY_BYTES, _BODY_BYTES = 16, 32, 32
_LINE_LENGTH = 64
#: The length of every header that is made.
BYTES = 2048
#: To so many recipients, each of which takes 98 bytes, a file of that header can be sealed.
MAX_RECIPIENTS = 16
_FILLER = b"-> vbackup-fill "


class NotForThisIdentityError(Exception):
    """No identity opens the file."""


class DamagedHeaderError(ValueError):
    """It is no age file, or its header was changed."""


@dataclass(frozen=True)
class Header:
    """The header of a file, and what it is about."""

    data: bytes  #: all of it, to the last line break
    stanzas: tuple[tuple[tuple[str, ...], bytes], ...]  #: the words of each, and its body
    mac: bytes


def new_key() -> bytes:
    """Return the key of a new file."""
    return os.urandom(_FILE_KEY_BYTES)


def make(file_key: bytes, recipients: Sequence[Recipient]) -> bytes:
    """Return a header of BYTES that each of the recipients, up to MAX_RECIPIENTS, can open."""
    data = _VERSION + b"".join(_sealed(file_key, one) for one in recipients)
    filling = BYTES - len(data) - len(_FILLER) - len(b"\n\n") - len(_end(b""))
    data += _FILLER + b"-" * filling + b"\n\n" + _MAC
    return data + _end(_mac(file_key, data))[len(_MAC) :]


def parse(data: bytes) -> Header:
    """Return the header with which data begins. Raises DamagedHeaderError."""
    if not data.startswith(_VERSION):
        raise DamagedHeaderError("it is no age file of version 1")
    stanzas: list[tuple[tuple[str, ...], bytes]] = []
    at = len(_VERSION)
    while True:
        line, at = _line(data, at)
        if line.startswith(_MAC + b" "):
            return Header(data[:at], tuple(stanzas), _decoded(line[len(_MAC) + 1 :]))
        words = line.decode("ascii", "replace").split(" ")
        if words[0] != "->" or len(words) == 1:
            raise DamagedHeaderError("its header has a line that cannot be")
        body = b""
        while True:
            line, at = _line(data, at)
            body += line
            if len(line) > _LINE_LENGTH:
                raise DamagedHeaderError("its header has a line that is too long")
            if len(line) < _LINE_LENGTH:
                break
        stanzas.append((tuple(words[1:]), _decoded(body)))


def unwrap(header: Header, identities: Sequence[Identity]) -> bytes:
    """Return the file key.

    Raises NotForThisIdentityError if no identity opens it, DamagedHeaderError if one does, but the header was changed.
    """
    for words, body in header.stanzas:
        if words[0] != "X25519":
            continue
        share = _decoded(words[-1].encode("ascii", "replace"))
        if words != ("X25519", words[-1]) or len(share) != _KEY_BYTES or len(body) != _BODY_BYTES:
            raise DamagedHeaderError("its header has a recipient that cannot be")
        for identity in identities:
            key = _opened(share, body, identity)
            if key is None:
                continue
            signed = header.data[: header.data.rindex(_MAC + b" ") + len(_MAC)]
            if not hmac.compare_digest(_mac(key, signed), header.mac):
                raise DamagedHeaderError("its header was changed")
            return key
    raise NotForThisIdentityError


def derived(key: bytes, *, salt: bytes, info: bytes) -> bytes:
    """Return a key of 32 bytes that comes from another: HKDF (RFC 5869) with SHA-256."""
    extracted = hmac.digest(salt or bytes(32), key, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def _sealed(file_key: bytes, recipient: Recipient) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    ephemeral = X25519PrivateKey.generate()
    share = ephemeral.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    common = ephemeral.exchange(X25519PublicKey.from_public_bytes(recipient.key))
    key = derived(common, salt=share + recipient.key, info=_LABEL)
    body = ChaCha20Poly1305(key).encrypt(bytes(12), file_key, None)
    return b"-> X25519 " + _base64(share) + b"\n" + _wrapped(body)


def _opened(share: bytes, body: bytes, identity: Identity) -> bytes | None:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    try:
        secret = X25519PrivateKey.from_private_bytes(identity.key)
        common = secret.exchange(X25519PublicKey.from_public_bytes(share))
        key = derived(common, salt=share + identity.recipient.key, info=_LABEL)
        return ChaCha20Poly1305(key).decrypt(bytes(12), body, None)
    except (InvalidTag, ValueError):  # ValueError: a share with which nothing is in common
        return None


def _mac(file_key: bytes, data: bytes) -> bytes:
    return hmac.digest(derived(file_key, salt=b"", info=b"header"), data, "sha256")


def _end(mac: bytes) -> bytes:
    return _MAC + b" " + _base64(mac or bytes(32)) + b"\n"


def _base64(data: bytes) -> bytes:
    return b64encode(data).rstrip(b"=")


def _wrapped(data: bytes) -> bytes:
    """Return the body of a stanza: full lines, and a last one that is not."""
    text = _base64(data)
    return b"".join(text[at : at + _LINE_LENGTH] + b"\n" for at in range(0, len(text) + 1, _LINE_LENGTH))


def _decoded(text: bytes) -> bytes:
    try:
        data = b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (Base64Error, ValueError):
        raise DamagedHeaderError("its header has what is no Base64") from None
    if _base64(data) != text:
        raise DamagedHeaderError("its header has what is no Base64")
    return data


def _line(data: bytes, at: int) -> tuple[bytes, int]:
    end = data.find(b"\n", at)
    if end < 0:
        raise DamagedHeaderError("its header has no end")
    return data[at:end], end + 1
