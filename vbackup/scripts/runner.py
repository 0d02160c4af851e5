"""Run the scripts of a phase for one domain, and keep how they ended.

A script of a phase that comes before the work stops it if it fails; a request to stop ends such a script. Those after
the work run to their end or deadline whatever happens: they undo what the earlier ones have done in a guest, and can
no longer change what has become of the work. A failure of theirs is a warning, and in the result.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import vbackup
from vbackup.errors import ScriptError, VbackupError, error_document
from vbackup.files import reported
from vbackup.report import Reporter
from vbackup.scripts import finding, program
from vbackup.scripts.finding import Found, Script, ScriptPhase
from vbackup.scripts.program import End, How
from vbackup.stop import Stop

T = TypeVar("T")

#: How long a script may run by default, in seconds.
TIMEOUT_S = 300.0
#: What the environment of every script has (vbackup-scripts(7)); empty where it is not known, or there is none.
VARIABLES = (
    "VBACKUP_BACKUP_ID",
    "VBACKUP_CONNECT",
    "VBACKUP_DOMAIN",
    "VBACKUP_LEVEL",
    "VBACKUP_OUTPUT",
    "VBACKUP_PHASE",
    "VBACKUP_REPOSITORY",
    "VBACKUP_STATUS",
    "VBACKUP_TIMEOUT",
    "VBACKUP_UUID",
    "VBACKUP_VERSION",
    "VBACKUP_WORK",
)
_STATES = {
    ScriptPhase.PRE_BACKUP: "No backup was made, and nothing was changed.",
    ScriptPhase.PRE_RESTORE: "Nothing was restored or changed.",
}


@dataclass(frozen=True)
class Settings:
    """Which scripts are run, and how long each may take."""

    directory: Path | None = None  #: None: no scripts
    is_wanted: bool = False  #: the user has named the directory, so it has to be there
    timeout_s: float = TIMEOUT_S
    reported: tuple[str, ...] = ()  #: warnings about scripts that the user has seen

    def find(self, *domain: str) -> Found:
        """Return the scripts for all domains, and those for the domain with these names.

        Raises what vbackup.scripts.finding.find raises.
        """
        if self.directory is None:
            return Found()
        return finding.find(self.directory, domain, is_wanted=self.is_wanted)


@dataclass(frozen=True)
class Outcome:
    """How a script ended."""

    script: Script
    failure: str | None  #: what went wrong, to follow the name of the script; None if nothing did
    exit_status: int | None  #: None if it did not end by itself
    duration_s: float

    def document(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "phase": self.script.phase.value,
            "script": str(self.script.path),
            "status": self.exit_status,
            "failure": self.failure,
            "duration_s": round(self.duration_s, 3),
        }


def none(*, reporter: Reporter, stop: Stop, work: str, domain: str) -> DomainScripts:
    """Return no scripts, for work that nobody has scripts for."""
    return DomainScripts(Settings(), reporter=reporter, stop=stop, work=work, domain=domain)


class DomainScripts:
    """The scripts of one domain's backup or restore. It knows more about that from step to step (``know``)."""

    def __init__(self, settings: Settings, *, reporter: Reporter, stop: Stop, work: str, domain: str) -> None:
        """Find the scripts for all domains; ``work``: backup or restore, ``domain``: as the user names it.

        Raises UsageError, UnsafeScriptError, StorageError.
        """
        self._settings, self._reporter, self._stop = settings, reporter, stop
        self._found = settings.find()
        self._facts = dict.fromkeys(VARIABLES, "")
        self.know(work=work, domain=domain, version=vbackup.__version__)
        self._thread: threading.Thread | None = None
        self._held_back: list[tuple[Script, str | Outcome]] = []
        self._has_failed = False
        self._lock = threading.Lock()
        self._outcomes: list[Outcome] = []

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """How those ended that have been run so far."""
        with self._lock:
            return tuple(self._outcomes)

    def documents(self) -> list[dict[str, Any]]:
        """Return the outcomes as JSON objects."""
        return [outcome.document() for outcome in self.outcomes]

    def know(self, **facts: str) -> None:
        """Add to the environment of the scripts: ``backup_id`` becomes VBACKUP_BACKUP_ID."""
        members = {f"VBACKUP_{name.upper()}": value for name, value in facts.items()}
        assert members.keys() <= self._facts.keys()
        self._facts.update(members)

    def of_domain(self, name: str, uuid: str, *, uri: str) -> None:
        """Find the scripts of this domain, too. Raises UnsafeScriptError, StorageError; nothing has been run then."""
        self.know(domain=name, uuid=uuid, connect=uri)
        self._found = self._settings.find(name, uuid)
        for warning in self._found.warnings:
            if warning not in self._settings.reported:
                self._reporter.warning(warning)

    def has(self, *phases: ScriptPhase) -> bool:
        """Return True if there is a script of one of the phases."""
        return any(self._found.scripts.get(phase) for phase in phases)

    def before(self, phase: ScriptPhase, document: Mapping[str, Any]) -> None:
        """Run the scripts; raise ScriptError when the first fails, and what the request to stop raises."""
        data = _data(document)
        for script in self._of(phase):
            end = self._run(script, data, check=self._stop.check)
            outcome = self._keep(script, end)
            if outcome.failure is not None:
                raise ScriptError(
                    phase.value,
                    str(script.path),
                    outcome.failure,
                    exit_status=outcome.exit_status,
                    state=_STATES[phase],
                )

    def after(self, phase: ScriptPhase, document: Mapping[str, Any]) -> None:
        """Run the scripts, whichever of them fail."""
        data = _data(document)
        for script in self._of(phase):
            self._warn(self._keep(script, self._run(script, data)))

    def while_frozen(self, phase: ScriptPhase, document: Mapping[str, Any], *, deadline: float) -> None:
        """Run the scripts until the deadline, on time.monotonic's clock; all of them are killed by then.

        Nothing is reported before ``report``: the guest is frozen, and whoever reads the log may be slow. Raises what
        the request to stop raises.
        """
        data = _data(document)
        for script in self._of(phase):
            own = min(deadline, time.monotonic() + self._settings.timeout_s)
            left_s = own - time.monotonic()
            if left_s > 0:
                end = program.run(
                    script.path,
                    environment=self._environment(script, left_s),
                    document=data,
                    deadline=own,
                    say=lambda line, script=script: self._held_back.append((script, line)),  # type: ignore[misc]
                    check=self._stop.check,
                    term_s=0,
                )
            else:
                end = End(How.NOT_STARTED, 0.0, why="no time was left of what scripts may take while it is frozen")
            outcome = self._keep(script, end, deadline="in the time that scripts may take while the guest is frozen")
            self._held_back.append((script, outcome))

    def report(self) -> None:
        """Report what was held back while the guest was frozen."""
        held_back, self._held_back = self._held_back, []
        for script, what in held_back:
            if isinstance(what, Outcome):
                self._warn(what)
            else:
                self._say(script, what)

    def begin(self, phase: ScriptPhase, document: Mapping[str, Any]) -> None:
        """Run the scripts as ``after`` does, while this thread goes on; ``attended`` waits for them."""
        if self.has(phase):
            self._thread = threading.Thread(target=self.after, args=(phase, document), name=phase.value)
            self._thread.start()

    def around(self, work: Callable[[], T], *, after: ScriptPhase, document: Callable[[T], Mapping[str, Any]]) -> T:
        """Do the work attended, run the scripts of the phase after it with its document, and return what it returns."""
        with self.attended():
            done = work()
        if self.has(after):
            self.after(after, document(done))
        return done

    @contextmanager
    def attended(self, *, failed: Callable[[VbackupError], None] = lambda _err: None) -> Iterator[None]:
        """Wait after the block for the scripts that it has begun; if it fails, run the on-failure scripts.

        ``failed`` is called before that, which can take minutes. Where one such block is in another, they run once.
        """
        try:
            yield
        except Exception as err:
            known = reported(err)
            failed(known)
            self._join()
            if not self._has_failed:
                self._has_failed = True
                self.know(status=str(int(known.status)))
                self.after(ScriptPhase.ON_FAILURE, error_document(known))
            raise
        finally:
            self._join()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    # one script

    def _of(self, phase: ScriptPhase) -> tuple[Script, ...]:
        return self._found.scripts.get(phase, ())

    def _run(self, script: Script, data: bytes, *, check: Callable[[], None] = lambda: None) -> End:
        timeout_s = self._settings.timeout_s
        return program.run(
            script.path,
            environment=self._environment(script, timeout_s),
            document=data,
            deadline=time.monotonic() + timeout_s,
            say=lambda line: self._say(script, line),
            check=check,
        )

    def _say(self, script: Script, line: str) -> None:
        self._reporter.step(f"{script.phase.value} script {script.path.name}: {line}")

    def _environment(self, script: Script, timeout_s: float) -> dict[str, str]:
        return {**self._facts, "VBACKUP_PHASE": script.phase.value, "VBACKUP_TIMEOUT": f"{timeout_s:.1f}"}

    def _keep(self, script: Script, end: End, *, deadline: str | None = None) -> Outcome:
        failure = end.failure(deadline=deadline or f"within {self._settings.timeout_s:g} s")
        outcome = Outcome(script, failure, end.exit_status, end.duration_s)
        with self._lock:
            self._outcomes.append(outcome)
        return outcome

    def _warn(self, outcome: Outcome) -> None:
        if outcome.failure is not None:
            script = outcome.script
            self._reporter.warning(f"The {script.phase.value} script {script.path} {outcome.failure}.")


def _data(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, default=str).encode() + b"\n"
