"""Who may read: a token, which is compared in constant time, and TLS certificates as QEMU's tls-creds-x509 has them."""

from __future__ import annotations

import hmac
import os
import ssl
import stat
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from vbackup import files
from vbackup.errors import StorageError
from vbackup.files import storage_errors

#: Files of tls-creds-x509 of a server (crypto/tlscredsx509.c in QEMU).
CA_CERT, SERVER_CERT, SERVER_KEY = "ca-cert.pem", "server-cert.pem", "server-key.pem"
#: Shortest and longest token.
MIN_TOKEN_BYTES, MAX_TOKEN_BYTES = 16, 4096
#: Header that KubeVirt's clients send the token in; the other way is Authorization: Bearer.
KUBEVIRT_HEADER = "x-kubevirt-export-token"
_BEARER = "bearer "


class Token:
    """A secret that clients have to know. Only its digest is kept."""

    def __init__(self, secret: bytes) -> None:
        self._digest = sha256(secret).digest()

    def admits(self, headers: Mapping[str, str]) -> bool:
        """Return True if a request with these headers has the token. ``headers`` does not distinguish case."""
        authorization = headers.get("Authorization", "")
        given = headers.get(KUBEVIRT_HEADER, "")
        if authorization[: len(_BEARER)].lower() == _BEARER:
            given = authorization[len(_BEARER) :].strip()
        digest = sha256(given.encode("utf-8", "surrogateescape")).digest()
        return hmac.compare_digest(digest, self._digest) and bool(given)


def read_token(path: Path) -> Token:
    """Return the token that is in a file: one line of printable ASCII, which nobody else can read.

    Raises StorageError.
    """
    with storage_errors(f"read the token file {path}"), os.fdopen(files.open_regular(path), "rb") as file:
        status = os.fstat(file.fileno())
        if stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid not in (os.geteuid(), 0):
            raise StorageError(
                f"Others can read the token file {path}, or it is somebody else's: make it yours, with mode 0600, and"
                " put a new token into it."
            )
        content = file.read(MAX_TOKEN_BYTES + 2)
    secret = content.rstrip(b"\r\n")
    is_text = secret.isascii() and secret.decode("ascii").isprintable() and b" " not in secret
    if not is_text or not MIN_TOKEN_BYTES <= len(secret) <= MAX_TOKEN_BYTES:
        raise StorageError(
            f"The token file {path} has to have one line of {MIN_TOKEN_BYTES} to {MAX_TOKEN_BYTES} printable characters"
            " without spaces, as 'openssl rand -hex 32' prints it."
        )
    return Token(secret)


def server_context(directory: Path, *, verify_peer: bool) -> ssl.SSLContext:
    """Return the server's certificate and key, and with ``verify_peer`` the CA that clients have to be of.

    Raises StorageError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(directory / SERVER_CERT, directory / SERVER_KEY, password=_no_password)
        if verify_peer:
            context.load_verify_locations(directory / CA_CERT)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as err:  # ssl.SSLError is an OSError
        needed = f"{SERVER_CERT} and {SERVER_KEY}" + (f", and {CA_CERT} of the clients" if verify_peer else "")
        raise StorageError(f"The TLS credentials in {directory} cannot be used ({err}): it needs {needed}.") from err
    return context


def _no_password() -> str:
    raise ValueError("the key has a password")
