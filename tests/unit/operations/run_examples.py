"""A configuration, and a world whose steps are scripted and whose clock is set by the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta, timezone
from pathlib import Path
from typing import Any

from tests.unit.builders import UUID, Recorder
from vbackup.config.calendar import Calendar
from vbackup.config.model import Config, Job, Notifier, Place, RepositoryEntry, TargetEntry
from vbackup.errors import BusyError, VbackupError, error_document
from vbackup.operations.run_children import Ended
from vbackup.operations.run_commands import Argv
from vbackup.operations.run_job import World
from vbackup.report import Labelled, Labelling, Reporter
from vbackup.repository.repository import Repository
from vbackup.runs.store import Store
from vbackup.stop import Stop

NOW = datetime(2026, 11, 30, 1, 0, 5, tzinfo=timezone.utc)
PLACE = Place(Path("/etc/vbackup/vbackup.toml"), 12)


class Labels(Recorder):
    """A recorder for several domains."""

    def labelled(self, domain: str) -> Reporter:
        return Labelled(self, domain)


def config(repository: Path, *jobs: Job, notifiers: Mapping[str, Notifier] | None = None, **changes: Any) -> Config:
    """A configuration of one repository, one target, and these jobs."""
    target = TargetEntry(
        "offsite", "/mnt/offsite", {"copy": {"identity": ("/k",)}, "prune": {"keep-daily": "9"}, "verify": {}}, PLACE
    )
    return Config(
        (PLACE.path,),
        {"main": RepositoryEntry("main", repository, PLACE)},
        {"offsite": target},
        {one.name: one for one in jobs or (job(),)},
        notifiers or {},
        **changes,
    )


def job(name: str = "nightly", **changes: Any) -> Job:
    """A job with all steps, every day at one o'clock UTC (the zone of the tests is that of the system)."""
    made: dict[str, Any] = {
        "domains": ("web", "db-*"),
        "exclude": ("db-test",),
        "connect": ("qemu:///system",),
        "calendar": Calendar((NOW.astimezone().time().replace(second=0, microsecond=0),)),
        "copy_to": ("offsite",),
        "options": {
            "backup": {"speed": "50M"},
            "prune": {"keep-last": "3"},
            "verify": {"sample": "5%"},
            "audit": {"sample": "1"},
        },
    }
    return Job(name, "main", PLACE, **{**made, **changes})


def daily(*hours: int) -> Calendar:
    """Times of each day, in UTC."""
    return Calendar(tuple(time(hour) for hour in hours))


def made(name: str = "web", uuid: str = UUID, **changes: Any) -> dict[str, Any]:
    """A backup, as its document has it, as far as a run reads it."""
    disk = {"dev": "vda", "change": None}
    return {
        "schema": "vbackup.backup/1",
        "id": "20261130T010005Z-full",
        "domain": {"name": name, "uuid": uuid},
        "level": "full",
        "size_bytes": 3 << 20,
        "disks": [disk],
        **changes,
    }


def backups(*domains: dict[str, Any] | tuple[str, VbackupError]) -> dict[str, Any]:
    """Backups of several domains."""
    entries = []
    for one in domains:
        if isinstance(one, dict):
            entries.append({"name": one["domain"]["name"], "uuid": one["domain"]["uuid"], "backup": one})
        else:
            entries.append({"name": one[0], "uuid": None, "error": error_document(one[1])})
    failed = sum("error" in one for one in entries)
    return {"schema": "vbackup.backups/1", "domains": entries, "done": len(entries) - failed, "failed": failed}


GOOD: dict[str, dict[str, Any]] = {
    "backup": backups(made()),
    "prune": {
        "schema": "vbackup.prune/1",
        "domains": [
            {"domain": {"name": "web", "uuid": UUID}, "kept": 3, "removed": 1, "freed_bytes": 1024, "busy": []}
        ],
        "failed": [],
    },
    "copy": {
        "schema": "vbackup.copy/1",
        "domains": [{"domain": {"name": "web", "uuid": UUID}, "copied": [{}, {}], "skipped": [], "size_bytes": 2048}],
        "failed": [],
    },
    "verify": {
        "schema": "vbackup.verify/1",
        "domains": [{"uuid": UUID, "name": "web", "backups": [{}], "broken": [], "damage": [], "read_bytes": 512}],
    },
    "audit": {
        "schema": "vbackup.audit/1",
        "domain": {"name": "web", "uuid": UUID},
        "disks": [{"dev": "vda", "verdict": "good", "read_bytes": 4096, "wrong_bytes": 0, "backup": "B"}],
    },
}
GOOD["prune --at"] = {**GOOD["prune"], "schema": "vbackup.copyprune/1"}
GOOD["verify --from"] = {
    "schema": "vbackup.copyverify/1",
    "domains": [{"domain": {"name": "web", "uuid": UUID}, "verified": ["B"], "read_bytes": 5, "damaged": []}],
}


def failed(err: VbackupError) -> Ended:
    """How a command ends that fails as a whole."""
    return Ended(int(err.status), error_document(err), (str(err),))


BUSY = failed(BusyError("Another vbackup is working on it."))


def kind_of(argv: Argv) -> str:
    """The command, and the option that makes it one of copies."""
    option = next((word.partition("=")[0] for word in argv if word.startswith(("--at=", "--from="))), None)
    return argv[0] if option is None else f"{argv[0]} {option}"


@dataclass
class Scripted:
    """Ends steps as the test wants it, and keeps their command lines."""

    answers: dict[str, Ended | Callable[[Argv, Stop], Ended]] = field(default_factory=dict)
    argvs: list[Argv] = field(default_factory=list)

    def __call__(self, argv: Argv, _reporter: Labelling, stop: Stop) -> Ended:
        self.argvs.append(argv)
        kind = kind_of(argv)
        answer = self.answers.get(kind, Ended(0, GOOD[kind]))
        return answer(argv, stop) if callable(answer) else answer

    @property
    def kinds(self) -> list[str]:
        """The commands that were executed."""
        return [kind_of(argv) for argv in self.argvs]


@dataclass
class Clock:
    """A clock that only the test moves."""

    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **amount: float) -> None:
        self.now += timedelta(**amount)


@dataclass
class Site:
    """A repository with a backup of domain web, a configuration, and a scripted world."""

    directory: Path
    steps: Scripted = field(default_factory=Scripted)
    clock: Clock = field(default_factory=Clock)
    reporter: Labels = field(default_factory=Labels)
    stop: Stop = field(default_factory=Stop)

    def __post_init__(self) -> None:
        self.repository = Repository.create(self.directory / "repository")
        (self.repository.path / UUID).mkdir()
        (self.repository.path / UUID / "domain.json").write_text('{"names": ["web"]}')

    @property
    def path(self) -> Path:
        return self.repository.path

    @property
    def store(self) -> Store:
        return Store(self.directory / "state")

    @property
    def world(self) -> World:
        return World(self.store, self.reporter, self.stop, now=self.clock, execute=self.steps)
