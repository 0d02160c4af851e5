"""A running domain and an attached QEMU for handlers, in memory."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fake_guestfish import FakeGuestfish
from tests.fake_qemu import FakeDisk, FakeQemu
from tests.unit import builders
from tests.unit.fake_domain import FakeDomain
from vbackup.cli import main
from vbackup.cli import qemu as cli_qemu
from vbackup.domain.attached import AttachedQemu
from vbackup.images import appliance
from vbackup.images.appliance import word_list
from vbackup.images.guest import Guest, Keys
from vbackup.images.guest_files import GuestFiles
from vbackup.model import DiskNode
from vbackup.operations import inside
from vbackup.operations.inside import Inside
from vbackup.qemu.monitor import block_graph
from vbackup.report import Reporter
from vbackup.repository import choice
from vbackup.repository.choice import Wanted
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@pytest.fixture
def attached(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeQemu]:
    """A QEMU with disks vda and vdb, to which every command attaches."""
    disks = [FakeDisk("virtio-disk0"), FakeDisk("virtio-disk1", path="/images/vdb.qcow2")]
    with FakeQemu(disks) as qemu:

        def find_disks() -> Mapping[str, DiskNode]:
            graph = block_graph(qemu)
            return {dev: graph.disk_node(builders.disk(dev)) for dev in ("vda", "vdb")}

        @contextmanager
        def attach(*_args: object, **_more: object) -> Iterator[AttachedQemu]:
            yield AttachedQemu("test", qemu, find_disks)

        monkeypatch.setattr(cli_qemu, "attach", attach)
        yield qemu


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bytes]:
    """Run ``vbackup`` and return what it writes to standard output, which is no text."""

    def run(*words: str | Path) -> bytes:
        written = io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", io.TextIOWrapper(written, write_through=True))
            assert main([os.fspath(word) for word in words]) == 0
            return written.getvalue()

    return run


class InsideGuest:
    """The file systems of domain web's backups, of which a fake of guestfish tells; and what was opened."""

    def __init__(self, fake: FakeGuestfish) -> None:
        self.fake = fake
        self.opened: list[tuple[str | None, str | None]] = []  #: backup and file system
        self.by_backup: dict[str, Callable[[], None]] = {}  #: what to do before a backup is opened

    def tree(self, directory: str, entries: Mapping[str, tuple[int, int, str]]) -> None:
        """Set what is below a directory, by path: mode, size, and content or target of a link."""
        paths = list(entries)
        self.fake.answer("realpath", directory, with_=f"{directory}\n")
        self.fake.answer("lstatns", directory, with_=_struct(0o40755, 0))
        self.fake.answer("statns", directory, with_=_struct(0o40755, 0))
        self.fake.answer(
            "ls0", directory, with_=b"".join(os.fsencode(path) + b"\0" for path in paths if "/" not in path)
        )
        self.fake.answer("find0", directory, with_=b"".join(os.fsencode(path) + b"\0" for path in paths))
        self.fake.answer("lstatnslist", with_=OSError("no such list"))
        for parent in {path.rpartition("/")[0] for path in paths}:
            inside = [path for path in entries if path.rpartition("/")[0] == parent]
            whole = f"{directory.rstrip('/')}/{parent}".rstrip("/") or "/"
            links = [path for path in inside if stat.S_ISLNK(entries[path][0])]
            structs = "".join(f"[0] = {{\n{_struct(*entries[path][:2])}}}\n" for path in inside)
            targets = "".join(f"{entries[path][2]}\n" for path in links)
            self.fake.answer("lstatnslist", whole, _names(inside), with_=structs)
            self.fake.answer("readlinklist", whole, _names(links), with_=targets)
        for path, (mode, size, content) in entries.items():
            whole = f"{directory.rstrip('/')}/{path}"
            self.fake.answer("lstatns", whole, with_=_struct(mode, size))
            self.fake.answer("statns", whole, with_=_struct(mode, size))
            self.fake.answer("readlink", whole, with_=f"{content}\n")
            self.fake.answer("download", whole, with_=os.fsencode(content))


def _names(paths: Sequence[str]) -> str:
    return word_list([path.rpartition("/")[2] for path in paths])


def _struct(mode: int, size: int) -> str:
    fields = {"ino": 1, "mode": mode, "nlink": 1, "uid": 7, "gid": 1000, "rdev": 259, "size": size}
    fields |= {"mtime_sec": 1_700_000_000, "mtime_nsec": 0}
    return "".join(f"  st_{name}: {number}\n" for name, number in fields.items())


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InsideGuest:
    """What every command that looks into a backup finds there: an operating system on vda/1."""
    fake = FakeGuestfish(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("TZ", "UTC")
    fake.answer("inspect-os", with_="/dev/sda1\n")
    fake.answer("inspect-get-mountpoints", with_="/: /dev/sda1\n")
    fake.answer("lstatns", with_=OSError("lstatns: No such file or directory"))
    fake.answer("statns", with_=OSError("statns: No such file or directory"))
    made = InsideGuest(fake)

    @contextmanager
    def opened(
        domain: str,
        wanted: Wanted,
        *,
        where: str | None,
        keys: Keys,
        repository: Repository,
        reporter: Reporter,
        stop: Stop,
    ) -> Iterator[Inside]:
        made.opened.append((wanted.backup_id, where))
        made.by_backup.get(wanted.backup_id or "", lambda: None)()
        backup = choice.choose(repository.catalogue(repository.find(domain)), wanted).backup
        with appliance.session([], stop=stop, step=reporter.step) as session:
            yield Inside(backup, Guest(session, ["vda"], keys=keys, warn=reporter.warning), GuestFiles(session))

    monkeypatch.setattr(inside, "opened", opened)
    return made


@pytest.fixture
def hosted(domain: FakeDomain, monkeypatch: pytest.MonkeyPatch) -> FakeDomain:
    """A running domain web on the host that every command connects to."""
    builders.use_libvirt(monkeypatch, domain)
    return domain
