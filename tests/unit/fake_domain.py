"""A domain whose QEMU is in memory: what vbackup.operations.backup needs of libvirt, for tests of whole backups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.fake_qemu import MIB, FakeBitmap, FakeDisk, FakeQemu
from tests.unit.builders import UUID, Recorder
from vbackup import names
from vbackup.errors import MigratingError, VbackupError
from vbackup.model import Backup
from vbackup.operations import backup
from vbackup.operations.backup import BackupRequest
from vbackup.qemu.backing_chain import Image
from vbackup.qemu.monitor import Event
from vbackup.repository.repository import Repository
from vbackup.scripts.runner import DomainScripts
from vbackup.stop import Stop

SIZE_BYTES = 16 * MIB
#: The last granule, which every incremental copies.
END_BYTES = 65536
DISKS = (("vda", "virtio-disk0"), ("vdb", "virtio-disk1"))
PATHS = {"vda": "/images/vda.qcow2", "vdb": "/images/vdb.raw"}


class FakeDomain:
    """A running domain (DomainHandle) and its host in one: two disks, vdb a raw one, and a cdrom."""

    def __init__(self) -> None:
        self.qemu = FakeQemu(
            [
                FakeDisk("virtio-disk0", SIZE_BYTES, path=PATHS["vda"]),
                FakeDisk("virtio-disk1", SIZE_BYTES, format="raw", path=PATHS["vdb"]),
            ],
            name="web",
        )
        self.name, self.uuid = "web", UUID
        self.host = self
        self.is_local = True
        self.has_link = False
        self.libvirt_version = "9.0.0"
        self.hostname = "elsewhere"
        self.uri: str | None = None
        self.real_uri, self.is_embedded = "qemu:///system", False
        self.agent_connected = False
        self.agent_error: VbackupError | None = None
        self.is_off = False
        self.has_saved_memory = False
        self.io_error = False
        self.migration: str | None = None
        self.paths = dict(PATHS)

    # Host

    volume_path = secret_value = None

    def command(self, words: str) -> str:
        return words

    def virsh(self, word: str) -> str:
        return f"virsh {word} {self.name}"

    def domain(self, name: str) -> FakeDomain:
        assert name in ("web", UUID)
        return self

    # DomainHandle

    def is_active(self) -> bool:
        return not self.is_off

    def refuse_migration(self) -> None:
        if self.migration is not None:
            raise MigratingError(self.name, incoming=self.migration == "in")

    def has_managed_save(self) -> bool:
        return self.has_saved_memory

    def live_xml(self) -> str:
        disks = "".join(
            f"<disk type='file' device='disk'><driver type='{'raw' if path.endswith('raw') else 'qcow2'}'/>"
            f"<source file='{path}'/><target dev='{dev}'/><alias name='virtio-disk{number}'/></disk>"
            for number, (dev, path) in enumerate(self.paths.items())
        )
        cdrom = "<disk device='cdrom'><target dev='hda'/></disk>"
        state = "connected" if self.agent_connected else "disconnected"
        channel = f"<channel><target name='org.qemu.guest_agent.0' state='{state}'/></channel>"
        return f"<domain><name>web</name><uuid>{UUID}</uuid><devices>{disks}{cdrom}{channel}</devices></domain>"

    def definition_xml(self) -> str:
        return self.live_xml()

    def autostart(self) -> bool | None:
        return False

    def is_paused_by_io_error(self) -> bool:
        return self.io_error

    def halted(self) -> str | None:
        return None

    def resume(self) -> None:
        self.io_error = False

    # what a test looks at

    def bitmaps(self) -> dict[str, dict[str, bool]]:
        """Which bitmaps of ours each disk has beside its end mark, and whether they record."""
        return {
            dev: {name: one.recording for name, one in self._bitmaps(alias) if names.parse_end_mark(name) is None}
            for dev, alias in DISKS
        }

    def end_marks(self) -> dict[str, list[tuple[int, list[int]]]]:
        """The end marks of each disk: the size in the name, and the granules that are set."""
        found: dict[str, list[tuple[int, list[int]]]] = {}
        for dev, alias in DISKS:
            marks = ((names.parse_end_mark(name), one) for name, one in self._bitmaps(alias))
            found[dev] = sorted((mark.size_bytes, sorted(one.dirty)) for mark, one in marks if mark is not None)
        return found

    def _bitmaps(self, alias: str) -> list[tuple[str, FakeBitmap]]:
        return list(self.qemu.bitmaps(self.qemu.top(alias)).items())

    def write(self, offset: int = 0) -> None:
        for alias in ("virtio-disk0", "virtio-disk1"):
            self.qemu.write(self.qemu.top(alias), offset, 4096)


class FakePassthrough:
    """The monitor and the agent of a FakeDomain."""

    def __init__(self, domain: FakeDomain) -> None:
        self._domain = domain

    def __enter__(self) -> FakePassthrough:
        return self

    def __exit__(self, *_exc: object) -> None:
        pass

    def execute(self, command: str, arguments: Any = None, *, fd: int | None = None) -> Any:
        return self._domain.qemu.execute(command, arguments, fd=fd)

    def next_event(self, timeout_s: float) -> Event | None:
        return self._domain.qemu.next_event(timeout_s)

    def agent(self, command: str, *, timeout_s: int) -> Any:
        assert timeout_s > 0
        if self._domain.agent_error is not None:
            raise self._domain.agent_error
        self._domain.qemu.sent.append(type(self._domain.qemu.sent[0])(command, {}))
        return {"guest-ping": {}, "guest-fsfreeze-status": "thawed"}.get(command, 1)


class FakeDaemon(FakePassthrough):
    """A storage daemon that has opened the disks of a FakeDomain which is off."""

    domain: FakeDomain

    def __init__(self, _reporter: object, *, survival: object = None, elsewhere: object = None) -> None:
        assert survival is None  # it is for sessions
        super().__init__(self.domain)
        self.chains: dict[str, list[str]] = {}

    pid = 1

    def open(self, alias: str, images: Sequence[Image], *, secret_value: object, read_only: bool = False) -> None:
        self.chains[alias] = [self.domain.qemu.top(alias)]


class FakeWatchdog:
    """The process that guards a freeze; its life is noted among the commands."""

    domain: FakeDomain

    def __init__(self, *, uri: str, uuid: str, limit_s: int, is_blind: bool, check: object) -> None:
        assert (uri, uuid, is_blind) == ("qemu:///system", UUID, False)
        self.limit_s = limit_s
        self.is_blind = is_blind
        self._note("start")

    def _note(self, what: str) -> None:
        self.domain.qemu.sent.append(type(self.domain.qemu.sent[0])(f"watchdog: {what}", {}))

    marks = True

    def reason_not_to_freeze(self) -> str | None:
        return None

    def may_be_left_frozen(self) -> bool:
        return False

    def has_thawed(self) -> bool:
        return False

    def freezing(self) -> None:
        self._note(f"freezing, {self.limit_s} s")

    def thawed(self) -> None:
        self._note("thawed")

    def let_go(self) -> None:
        self._note("let go")

    def close(self) -> None:
        self._note("close")


def run(
    domain: FakeDomain,
    repo: Repository,
    recorder: Recorder | None = None,
    *,
    stop: Stop | None = None,
    scripts: DomainScripts | None = None,
    **request: Any,
) -> Backup:
    return backup.run(
        BackupRequest("web", **request),
        host=domain,  # type: ignore[arg-type]
        repository=repo,
        reporter=recorder or Recorder(),
        stop=stop or Stop(),
        scripts=scripts,
    )


def partial(repo: Repository) -> list[str]:
    return [path.name for path in repo.path.glob("*/*.partial")]


def shrink_and_grow(domain: FakeDomain) -> None:
    node = domain.qemu.top("virtio-disk0")
    domain.qemu.resize(node, SIZE_BYTES // 2)
    domain.qemu.resize(node, SIZE_BYTES)
