"""``vbackup serve-session`` as a process, and curl as its clients."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import certificates, documents
from vbackup.sessions.store import ENVIRONMENT

TOKEN = "0123456789abcdef-token"


def prepare(directory: Path) -> None:
    """Make certificates, the token, and the headers that curl reads: header, wrong and empty."""
    certificates.make(directory / "pki")
    texts = {"token": TOKEN, "header": f"Authorization: Bearer {TOKEN}", "wrong": "Authorization: x", "empty": ""}
    for name, text in texts.items():
        (directory / name).write_text(text + "\n" if text else "")
        (directory / name).chmod(0o600)


def start(directory: Path, session_id: str, *options: str, sessions: Path) -> subprocess.Popen[str]:
    """Start to serve; ``sessions``: the state directory."""
    argv = [sys.executable, "-m", "vbackup", "serve-session", session_id, "--http", "--json", *options]
    argv += ["--tls-creds", os.fspath(directory / "pki"), "--token-file", os.fspath(directory / "token")]
    environment = {**os.environ, ENVIRONMENT: os.fspath(sessions)}
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def served(directory: Path, session_id: str, *options: str, sessions: Path) -> Served:
    """Serve, and return when clients can connect."""
    process = start(directory, session_id, *options, sessions=sessions)
    assert process.stdout is not None
    document = json.loads(process.stdout.readline() or "{}")
    if "url" not in document:  # it has ended with an error
        raise AssertionError((document, process.communicate()))
    return Served(directory, process, document)


@dataclass
class Served:
    """The process that serves it."""

    directory: Path
    process: subprocess.Popen[str]
    document: dict[str, Any]

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self, signum: int | None = signal.SIGTERM) -> tuple[int, str, str]:
        """Its status, and what it has said since its document."""
        if signum is not None:
            self.process.send_signal(signum)
        stdout, stderr = self.process.communicate(timeout=30)
        return self.process.returncode, stdout, stderr

    def url(self, what: str, dev: str = "vda") -> str:
        return f"{self.document['url']}/{dev}/{what}"

    def curl(self, url: str, *options: str, header: str = "header") -> Sequence[str]:
        """The words of a call of curl, with the token in a file."""
        pki = self.directory / "pki"
        words = ("curl", "--silent", "--show-error", "--cacert", os.fspath(pki / "ca-cert.pem"))
        return *words, "--header", f"@{self.directory / header}", *options, url

    def ask(self, url: str, *options: str, header: str = "header") -> tuple[int, bytes]:
        """Status and body of an answer; JSON is as its schema describes it."""
        argv = self.curl(url, "--write-out", "%{stderr}%{content_type} %{http_code}", *options, header=header)
        done = subprocess.run(argv, capture_output=True, check=False, timeout=60)
        if b"application/json" in done.stderr:
            documents.check(json.loads(done.stdout))
        return int(done.stderr[-3:]), done.stdout

    def pull(self, copy: bytearray, dev: str = "vda", *, page_size: int) -> tuple[int, int]:
        """Bring a copy up to date by the extents that changed; the numbers of pages and of bytes that were read."""
        offset: int | None = 0
        pages, read_bytes = 0, 0
        while offset is not None:
            status, body = self.ask(self.url(f"map?offset={offset}&page_size={page_size}", dev))
            assert status == 200, body
            page = json.loads(body)
            offset = page["next_offset"]
            pages += 1
            for extent in page["extents"]:
                start, end = extent["start"], extent["start"] + extent["length"]
                if extent["zero"]:
                    copy[start:end] = bytes(end - start)
                    continue
                status, body = self.ask(self.url("data", dev), "--range", f"{start}-{end - 1}")
                assert (status, len(body)) == (206, end - start)
                copy[start:end] = body
                read_bytes += end - start
        return pages, read_bytes
