"""Watch a copy of a domain boot until it has shown what was asked for, has ended, or the time is over."""

from __future__ import annotations

import base64
import binascii
import re
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from vbackup.domain import screenshot
from vbackup.errors import DomainGoneError, MalformedError, MonitorError, QmpError
from vbackup.fields import Fields

#: Pause between two looks: nothing tells that an agent would answer, or that a guest has read or drawn something.
TICK_S = 0.25
#: How long the agent may take to answer a command: one that starts may have the port open already.
AGENT_S = 5
#: The screen is looked at as often as that, and the guest is at rest when it has read nothing for that time.
SCREEN_TICK_S, REST_S = 2.0, 10.0
#: What a guest that boots reads of its disks at least. Firmware that finds nothing to boot reads a few sectors.
MIN_READ_BYTES = 1024 * 1024
#: The same for a guest that does not load its kernel from a disk: to mount an ext4 takes some 20 KB.
MIN_READ_OF_DIRECT_BOOT_BYTES = 16 * 1024
#: How much of the end of what a command has printed is kept.
KEPT_CHARACTERS = 2000
#: QERR_QGA_COMMAND_FAILED of QEMU's guest agent, and what GLib says at the end (g_spawn_async_with_pipes).
_AGENT_ERROR = re.compile(r"error was '(.*)'", re.DOTALL)
_SYSTEM_ERROR = re.compile(r"\(([^()]+)\)\.?\Z")


@dataclass(frozen=True)
class Goals:
    """What was asked for. All of it has to be reached."""

    agent: bool = False
    command: str | None = None  #: to run in the guest, with the words as a shell would split them
    console: str | None = None  #: a regular expression
    screen: bool = False
    min_read_bytes: int = MIN_READ_BYTES


@dataclass(frozen=True)
class Watched:
    """What was reached, in seconds after the start, and why not more."""

    failure: str | None = None  #: a sentence; None: everything was reached
    agent_s: float | None = None
    command_s: float | None = None  #: when the command had ended
    command_status: int | None = None
    command_output: str = ""  #: the end of it
    console_s: float | None = None
    screen_s: float | None = None


class Copy(Protocol):
    """A copy of a domain that boots."""

    def is_active(self) -> bool:
        """Return True while it has a QEMU."""

    def agent(self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: int) -> Any:
        """Send a command to its guest agent (vbackup.domain.passthrough.Passthrough.agent)."""

    def console(self) -> str:
        """Return what it has written to its consoles."""

    def read_bytes(self) -> int:
        """Return how much it has read of its disks."""

    def picture(self) -> bytes:
        """Return its screen as PNG. Raises MonitorError, MalformedError."""

    def wait(self, timeout_s: float) -> None:
        """Return after that time. Raises what ends the test before: a signal, or the end of the storage daemon."""


def watch(copy: Copy, goals: Goals, *, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> Watched:
    """Watch a copy that has just been started. Raises what its methods raise, but for what its guest can cause."""
    return _Watch(copy, goals, timeout_s, clock).run()


class _FailedError(Exception):
    """A goal cannot be reached any more; the text is a sentence."""


class _Watch:
    def __init__(self, copy: Copy, goals: Goals, timeout_s: float, clock: Callable[[], float]) -> None:
        self._copy, self._goals, self._timeout_s, self._clock = copy, goals, timeout_s, clock
        self._started = clock()
        self._seen = Watched()
        self._pid: int | None = None  # of the command, in the guest
        self._next_screen_s = 0.0
        self._read_bytes, self._read_at_s = 0, 0.0
        self._has_picture = False

    def run(self) -> Watched:
        while True:
            try:
                self._look()
                missing = self._missing()
                if not missing:
                    return self._seen
                if not self._copy.is_active():
                    raise DomainGoneError("")
            except DomainGoneError:
                return self._failed(f"The guest switched itself off, or its QEMU ended, after {self._passed():.1f} s.")
            except _FailedError as err:
                return self._failed(str(err))
            if self._elapsed_s() >= self._timeout_s:
                return self._failed(f"Within {self._timeout_s:g} s, {' and '.join(missing)}.")
            self._copy.wait(TICK_S)

    def _failed(self, sentence: str) -> Watched:
        return replace(self._seen, failure=sentence)

    def _elapsed_s(self) -> float:
        return self._clock() - self._started

    def _passed(self) -> float:
        return round(self._elapsed_s(), 1)

    def _look(self) -> None:
        goals, seen = self._goals, self._seen
        if (goals.agent or goals.command is not None) and seen.agent_s is None:
            self._ask_agent()
        if goals.command is not None and self._seen.agent_s is not None and seen.command_s is None:
            self._run_command(goals.command)
        if goals.console is not None and seen.console_s is None and re.search(goals.console, self._copy.console()):
            self._seen = replace(self._seen, console_s=self._passed())
        if goals.screen and seen.screen_s is None and self._elapsed_s() >= self._next_screen_s:
            self._look_at_screen()

    def _missing(self) -> list[str]:
        """Return what is still missing, as parts of a sentence."""
        goals, seen, found = self._goals, self._seen, []
        if (goals.agent or goals.command is not None) and seen.agent_s is None:
            found.append("no guest agent answered")
        elif goals.command is not None and seen.command_s is None:
            found.append(f"the command {goals.command!r} did not end in the guest")
        if goals.console is not None and seen.console_s is None:
            found.append(f"nothing on its consoles matched {goals.console!r}")
        if goals.screen and seen.screen_s is None:
            if self._read_bytes < goals.min_read_bytes:
                found.append(f"the guest read only {self._read_bytes} bytes of its disks: it did not boot from them")
            else:
                found.append("nothing was drawn on its screen")
        return found

    def _ask_agent(self) -> None:
        try:
            self._copy.agent("guest-ping", timeout_s=AGENT_S)
        except QmpError:
            pass  # an agent that refuses it answers, too
        except MonitorError:
            return
        self._seen = replace(self._seen, agent_s=self._passed())

    def _run_command(self, command: str) -> None:
        path, *words = shlex.split(command)
        try:
            if self._pid is None:
                arguments = {"path": path, "arg": words, "capture-output": True}
                reply = self._copy.agent("guest-exec", arguments, timeout_s=AGENT_S)
                self._pid = Fields(reply, "guest-exec", MalformedError).integer("pid")
            reply = self._copy.agent("guest-exec-status", {"pid": self._pid}, timeout_s=AGENT_S)
            status = Fields(reply, "guest-exec-status", MalformedError)
            if not status.boolean("exited"):
                return
            code = code if isinstance(code := status.raw("exitcode"), int) else None  # Windows has negative ones
            output = "".join(_decoded(status.optional_text(name)) for name in ("out-data", "err-data"))
        except QmpError as err:
            raise _FailedError(f"The guest agent did not run {command!r}: {_cause(err)}.") from err
        except MalformedError as err:
            raise _FailedError(f"The guest agent gave a wrong answer: {err}") from err
        except MonitorError:
            return  # it does not answer at the moment
        self._seen = replace(
            self._seen, command_s=self._passed(), command_status=code, command_output=output[-KEPT_CHARACTERS:]
        )
        if code != 0:
            how = "was killed by a signal" if code is None else f"exited with status {code}"
            last = f": {output.strip().splitlines()[-1]}" if output.strip() else ""
            raise _FailedError(f"The command {command!r} {how} in the guest{last}.")

    def _look_at_screen(self) -> None:
        now_s = self._elapsed_s()
        self._next_screen_s = min(now_s + SCREEN_TICK_S, max(self._timeout_s, now_s))
        read_bytes = self._copy.read_bytes()
        if read_bytes != self._read_bytes:
            self._read_bytes, self._read_at_s = read_bytes, now_s
        is_over = now_s >= self._timeout_s
        if read_bytes < self._goals.min_read_bytes or not (is_over or now_s - self._read_at_s >= REST_S):
            return
        try:
            is_alive = not screenshot.is_one_colour(self._copy.picture())
        except (MonitorError, MalformedError):
            is_alive = False  # a guest can switch its screen off
        if is_alive:
            self._seen = replace(self._seen, screen_s=self._passed())


def _cause(err: QmpError) -> str:
    """Return why the agent did not run a program, without the words around it: of libvirt, of QEMU and of GLib."""
    said = _AGENT_ERROR.search(err.description)
    reason = err.description if said is None else said[1]
    system = _SYSTEM_ERROR.search(reason)
    return (reason if system is None else system[1]).rstrip(".")


def _decoded(text: str | None) -> str:
    try:
        return base64.b64decode(text or "").decode(errors="replace")
    except (binascii.Error, ValueError):
        return ""
