"""Where an NBD export is: its URI, and the connection to it, in the clear or by TLS.

URIs: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md. TLS as QEMU's tls-creds-x509 has it: a directory
with ca-cert.pem, client-cert.pem and client-key.pem.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, unquote, urlsplit

from vbackup.errors import MalformedError, StorageError

if TYPE_CHECKING:
    import ssl

DEFAULT_PORT = 10809
#: Files of tls-creds-x509 (crypto/tlscredsx509.c in QEMU).
CA_CERT, CLIENT_CERT, CLIENT_KEY = "ca-cert.pem", "client-cert.pem", "client-key.pem"
_SCHEMES = {"nbd": (False, False), "nbds": (False, True), "nbd+unix": (True, False), "nbds+unix": (True, True)}


@dataclass(frozen=True)
class NbdAddress:
    """An export and where its server is: a unix socket, or a host and a port."""

    export: str
    path: Path | None = None
    host: str = ""
    port: int = DEFAULT_PORT
    is_tls: bool = False

    @property
    def uri(self) -> str:
        """The address as qemu-img, nbdcopy and libnbd take it."""
        scheme = "nbds" if self.is_tls else "nbd"
        if self.path is not None:
            return f"{scheme}+unix:///{quote(self.export)}?socket={quote(os.fspath(self.path))}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}/{quote(self.export)}"

    def connect(self, timeout_s: float) -> socket.socket:
        """Return a connected socket, each step on which may take ``timeout_s``. Raises OSError."""
        if self.path is None:
            return socket.create_connection((self.host, self.port), timeout_s)
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connected.settimeout(timeout_s)
            connected.connect(os.fspath(self.path))
        except BaseException:
            connected.close()
            raise
        return connected


def parse(uri: str) -> NbdAddress:
    """Return the address that a URI has. Raises MalformedError if it is no URI of an NBD export."""
    try:
        parts = urlsplit(uri)
        is_unix, is_tls = _SCHEMES[parts.scheme]
        export = unquote(parts.path.removeprefix("/"), errors="strict")
        sockets = parse_qs(parts.query, strict_parsing=bool(parts.query), errors="strict").get("socket", [])
        if is_unix:
            [path] = sockets
            if parts.netloc or not path.startswith("/") or "\0" in path:
                raise ValueError
            return NbdAddress(export, path=Path(path), is_tls=is_tls)
        if not parts.hostname or sockets:
            raise ValueError
        return NbdAddress(export, host=parts.hostname, port=parts.port or DEFAULT_PORT, is_tls=is_tls)
    except (KeyError, ValueError):
        raise MalformedError(
            f"{uri!r} is not the address of an NBD export, such as nbd+unix:///vda?socket=/p."
        ) from None


def client_context(directory: Path) -> ssl.SSLContext:
    """Return what a client presents and trusts, from a directory as QEMU's tls-creds-x509 has it.

    The certificate of the server has to be of its CA and of its host; a client certificate is presented if there is
    one. Raises StorageError.
    """
    import ssl  # only where there is TLS: it takes longer to import than many a command

    try:
        context = ssl.create_default_context(cafile=os.fspath(directory / CA_CERT))
        if (directory / CLIENT_CERT).exists():
            context.load_cert_chain(directory / CLIENT_CERT, directory / CLIENT_KEY)
    except (OSError, ValueError) as err:  # ssl.SSLError is an OSError
        raise StorageError(
            f"The TLS credentials in {directory} cannot be used ({err}): it needs {CA_CERT} and, if the server wants a"
            f" client certificate, {CLIENT_CERT} and {CLIENT_KEY}."
        ) from err
    return context
