"""Execute a step: a vbackup in a separate process, so that its crash, or its end by the kernel, is not that of the run.

Its JSON document is its answer, its events are reported as they come, and what else it says on standard error is kept.
A signal to the run is passed on, and the step's end is waited for: it undoes what it has begun. If the run is killed,
the kernel sends the step SIGTERM (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vbackup.errors import Status, VbackupError
from vbackup.fields import parse_json
from vbackup.process import refuse_lost_ends
from vbackup.report import Labelling, Phase, Reporter
from vbackup.stop import Stop

#: The same modules as in this process, and nothing from the working directory or the environment.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from vbackup.cli import command; command()  # vbackup"
)
#: What is added to each command line.
_FOR_PROGRAMS = ("--json", "--progress=json")
#: How many lines that are no events are kept.
_KEPT_LINES = 20
_READ_BYTES = 256 * 1024
#: A line that is longer is no line.
_MAX_LINE_BYTES = 1024 * 1024
_ERROR, _WARNING = "vbackup: ", "vbackup: warning: "


@dataclass(frozen=True)
class Ended:
    """How a step ended."""

    status: int  #: exit status; 128 and the number of the signal that killed it
    document: dict[str, Any] | None  #: what it printed with --json
    last_words: tuple[str, ...] = ()  #: its last lines on standard error that are no events
    warnings: tuple[str, ...] = ()
    killed_by: int | None = None  #: the signal that killed it
    domain: str | None = None  #: name of the only domain that it was about


def execute(argv: Sequence[str], reporter: Labelling, stop: Stop) -> Ended:
    """Run ``vbackup ARGV`` and return how it ended, whatever that was. Raises VbackupError if it cannot be started."""
    refuse_lost_ends()
    paths = json.dumps([path for path in sys.path if Path(path).is_absolute()])
    command, *options = argv
    program = [sys.executable, "-I", "-c", _START, paths, command, *_FOR_PROGRAMS, *options]
    try:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", *program],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except OSError as err:
        raise VbackupError(f"Cannot start vbackup {command}: {err.strerror or err}.") from err
    events = _Events(reporter)
    with process:
        output = _follow(process, events, stop)
    killed_by = -process.returncode if process.returncode < 0 else None
    status = process.returncode if killed_by is None else Status.SIGNAL + killed_by
    return Ended(status, _document(output), tuple(events.last_words), tuple(events.warnings), killed_by)


def _follow(process: subprocess.Popen[bytes], events: _Events, stop: Stop) -> bytes:
    """Pass signals on and report events until the process ends; return what it has printed."""
    assert process.stdout is not None  # both are pipes
    assert process.stderr is not None
    output = bytearray()
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        ending = os.pidfd_open(process.pid)
        stack.callback(os.close, ending)
        stopping = stack.enter_context(stop.descriptor())
        lines = stack.enter_context(closing(_Lines(events.line)))
        readers: dict[int, Callable[[bytes], object]] = {
            process.stdout.fileno(): output.extend,
            process.stderr.fileno(): lines.add,
        }
        for fd in (*readers, ending, stopping):
            os.set_blocking(fd, False) if fd in readers else None
            selector.register(fd, selectors.EVENT_READ)
        has_ended = False
        while not has_ended:
            ready = {key.fd for key, _ in selector.select()}
            if stopping in ready:
                selector.unregister(stopping)
                process.send_signal(stop.signum or signal.SIGTERM)
            # What it wrote before its end is there when its end is: read after that is seen.
            has_ended = ending in ready
            for fd in [fd for fd in (*readers,) if has_ended or fd in ready]:
                if not _read(fd, readers[fd], until_empty=has_ended):
                    selector.unregister(fd)
                    del readers[fd]
    return bytes(output)


def _read(fd: int, take: Callable[[bytes], object], *, until_empty: bool) -> bool:
    """Take what there is to read; return False at the end. A process in the background can keep a pipe open."""
    while True:
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return True
        if not data:
            return False
        take(data)
        if not until_empty:
            return True


def _document(output: bytes) -> dict[str, Any] | None:
    try:
        document = parse_json(output.decode())
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


class _Lines:
    """Cuts what is read into lines."""

    def __init__(self, take: Callable[[str], None]) -> None:
        self._take = take
        self._rest = b""

    def add(self, data: bytes) -> None:
        """Take what was read, and pass on the lines that are complete."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            whole, self._rest = [*whole, self._rest], b""
        for line in whole:
            self._take(line.decode(errors="backslashreplace"))

    def close(self) -> None:
        """Pass on a last line without an end."""
        if self._rest:
            self._take(self._rest.decode(errors="backslashreplace"))


class _Events:
    """Reports the events of a step, as vbackup-json(7) describes them, and keeps its other lines."""

    def __init__(self, reporter: Labelling) -> None:
        self.warnings: list[str] = []
        self.last_words: deque[str] = deque(maxlen=_KEPT_LINES)
        self._reporter = reporter
        self._of_domains: dict[str, Reporter] = {}

    def line(self, text: str) -> None:
        """Report what the line says."""
        event = self._event(text)
        if event is not None:
            with suppress(KeyError, ValueError, TypeError):  # of a newer vbackup, which was installed during the run
                self._report(event)
        elif text.startswith(_WARNING):
            self._warn(None, text[len(_WARNING) :])
        elif text.strip():
            self.last_words.append(text.removeprefix(_ERROR))
            self._reporter.step(text.removeprefix(_ERROR))

    @staticmethod
    def _event(text: str) -> dict[str, Any] | None:
        if not text.startswith('{"schema": "vbackup.event/1"'):
            return None
        try:
            event = parse_json(text)
        except (ValueError, RecursionError):
            return None
        return event if isinstance(event, dict) else None

    def _report(self, event: dict[str, Any]) -> None:
        domain = event.get("domain")
        if event["event"] == "warning":
            self._warn(domain, event["message"])
        elif event["event"] == "step":
            self._of(domain).step(event["message"])
        elif event["event"] == "progress":
            phase = Phase(event["phase"])
            self._of(domain).progress(event["dev"], phase, event["done_bytes"], event["total_bytes"])

    def _warn(self, domain: str | None, message: str) -> None:
        self.warnings.append(message if domain is None else f"{domain}: {message}")
        self._of(domain).warning(message)

    def _of(self, domain: str | None) -> Reporter:
        if domain is None:
            return self._reporter
        if domain not in self._of_domains:
            self._of_domains[domain] = self._reporter.labelled(domain)
        return self._of_domains[domain]
