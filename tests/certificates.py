"""Certificates of a CA, a server and a client, in a directory as QEMU's tls-creds-x509 has it. Made by openssl."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


_LOCAL = "DNS:localhost,IP:127.0.0.1"


def make(directory: Path, names: str = _LOCAL) -> Path:
    """Return ``directory`` with new files: of one CA, for localhost and 127.0.0.1 or other names, and of a client."""
    shutil.copytree(_made(names), directory, dirs_exist_ok=True)
    return directory


def other_ca(directory: Path) -> str:
    """Return the certificate of a CA that has signed nothing; ``directory`` is created."""
    directory.mkdir()
    _ca(directory)
    return (directory / "ca-cert.pem").read_text()


#: What certtool gives an authority, too; from Python 3.13 on, ssl refuses one without it.
CA_EXTENSIONS = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")


@functools.cache
def _made(names: str) -> Path:
    """Of this process; the run's temporary directory goes with the run."""
    directory = Path(tempfile.mkdtemp(prefix="vbackup-certificates-"))
    _ca(directory)
    for name, usage in (("server", "serverAuth"), ("client", "clientAuth")):
        (directory / "extensions").write_text(
            f"subjectAltName={names}\nextendedKeyUsage={usage}\nkeyUsage=digitalSignature\n"
        )
        request = ("-subj", f"/CN=vbackup test {name}", "-keyout", f"{name}-key.pem", "-out", "request.pem")
        _openssl(directory, "req", *_NEW_KEY, *request)
        signing = ("-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-extfile", "extensions")
        _openssl(directory, "x509", "-req", "-in", "request.pem", *signing, "-days", "2", "-out", f"{name}-cert.pem")
    for name in ("extensions", "request.pem"):
        (directory / name).unlink()
    return directory


def _ca(directory: Path) -> None:
    files = ("-subj", "/CN=vbackup test CA", "-keyout", "ca-key.pem", "-out", "ca-cert.pem")
    _openssl(directory, "req", "-x509", *_NEW_KEY, *files, *CA_EXTENSIONS, "-days", "2")


def _openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)
