"""A vendor's program: two domains at once by the library, each with its reporter; errors, and a stop.

And the examples of vbackup-api(7), as they are printed there.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from docutils import nodes
from docutils.core import publish_doctree

from tests import daemon as daemon_
from tests.lab import DiskSpec, Lab, Machine, compare, domain_xml
from vbackup import api
from vbackup.api import BackupRequest, Level, PruneRequest, RestoreRequest, Rules, Stop, Wanted, documents
from vbackup.config import documents as config_documents
from vbackup.errors import BaseError, BusyError, DiskError, DomainNotFoundError, InterruptedBySignalError
from vbackup.report import Phase

PAGE = Path(__file__).resolve().parents[2] / "man" / "vbackup-api.7.rst"
MIB = 1024 * 1024


class Events:
    """A reporter that remembers; ``on_copy`` is called when the copy has begun, once."""

    def __init__(self, on_copy: Callable[[], None] = lambda: None) -> None:
        self.warnings: list[str] = []
        self.copied: dict[str, int] = {}
        self.threads: set[int] = set()
        self._on_copy = on_copy

    def step(self, message: str) -> None:
        pass

    def warning(self, message: str) -> None:
        self.warnings.append(message)

    def progress(self, dev: str, phase: Phase, done_bytes: int, total_bytes: int) -> None:
        self.threads.add(threading.get_ident())
        if phase is Phase.COPY:
            has_begun = bool(self.copied)
            self.copied[dev] = done_bytes
            if not has_begun:
                self._on_copy()


@dataclass
class Guest:
    """A domain of one disk that nobody but the test writes to, and what was written."""

    machine: Machine
    spec: DiskSpec
    written: list[str] = field(default_factory=list)

    def write(self, command: str) -> None:
        self.machine.write("vda", command)
        self.written.append(command)

    def expected(self, path: Path) -> Path:
        """A new image with what the disk holds now."""
        DiskSpec(path, size=self.spec.size).create()
        commands = [word for command in self.written for word in ("-c", command)]
        subprocess.run(["qemu-io", "-f", "qcow2", *commands, os.fspath(path)], check=True, stdout=subprocess.DEVNULL)
        return path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return api.create_repository(tmp_path / "repository").path


@pytest.fixture
def guests(daemon: daemon_.Daemon, images: Path) -> dict[str, Guest]:
    """Two domains at a libvirtd, to which each thread has a connection."""
    found = {}
    for number, name in enumerate(("web", "db"), start=1):
        spec = DiskSpec(images / f"{name}.qcow2", size="16M")
        spec.create()
        found[name] = Guest(daemon.start(domain_xml(name, [spec.xml()])), spec)
        found[name].write(f"write -P {number} 0 6M")
    return found


def test_two_threads_back_up_two_domains_at_once(
    daemon: daemon_.Daemon, guests: dict[str, Guest], tmp_path: Path, repository: Path
) -> None:
    """A full and an incremental, each with a guest that writes meanwhile; both are restored and compared."""
    nodes_before = {name: guest.machine.state()["nodes"] for name, guest in guests.items()}
    expected: dict[str, list[tuple[str, Path]]] = {name: [] for name in guests}
    with api.connect(daemon.uri, repository=repository) as vb, ThreadPoolExecutor(2) as pool:
        together = threading.Barrier(2)

        def back_up(name: str) -> tuple[api.Backup, Events]:
            guest = guests[name]
            image = guest.expected(tmp_path / f"{name}-{len(expected[name])}.qcow2")

            def meanwhile() -> None:
                together.wait(60)  # neither goes on before the other copies
                guest.write(f"write -P {len(guest.written) + 50} 1M 2M")

            events = Events(meanwhile)
            made = vb.backup(BackupRequest(name, speed_bytes_s=32 * MIB), reporter=events)
            expected[name].append((made.id, image))
            return made, events

        for level in (Level.FULL, Level.INCREMENTAL):
            done = dict(zip(guests, pool.map(back_up, guests)))
            assert {name: (made.domain_name, made.level) for name, (made, _) in done.items()} == {
                name: (name, level) for name in guests
            }
            assert [(events.copied.keys(), events.warnings) for _, events in done.values()] == [({"vda"}, [])] * 2
            assert not done["web"][1].threads & done["db"][1].threads
        for name, points in expected.items():
            [record] = vb.records(name)
            assert [one.id for one in record.backups] == [backup_id for backup_id, _ in points]
            assert vb.verify(name).damaged == []
            for backup_id, image in points:
                output = tmp_path / f"out-{name}-{backup_id}"
                restored = vb.restore(RestoreRequest(name, output, Wanted(backup_id), checkpoint=False))
                assert documents.backup(restored.backup)["id"] == backup_id
                compare(restored.images["vda"], image)
        pruned = vb.prune(PruneRequest("web", Rules(last=1)))
        assert [line.id for line in pruned.removed] == [expected["web"][0][0]]
        compare(vb.restore("web", tmp_path / "last").images["vda"], expected["web"][1][1])
    assert {name: guest.machine.state()["nodes"] for name, guest in guests.items()} == nodes_before


# one domain


@pytest.fixture
def web(lab: Lab, tmp_path: Path) -> Machine:
    machine = lab.boot("web", [DiskSpec(tmp_path / "vda.qcow2", size="16M")])
    machine.write("vda", "write -P 1 0 12M")
    return machine


def test_stop_ends_the_backup_and_leaves_nothing(lab: Lab, web: Machine, repository: Path) -> None:
    before = web.state()
    stop = Stop()
    with api.connect(lab.uri, repository=repository) as vb:
        canceller = threading.Thread(target=stop.request)
        with pytest.raises(InterruptedBySignalError, match="nothing was kept"):
            vb.backup(BackupRequest("web", speed_bytes_s=MIB), reporter=Events(canceller.start), stop=stop)
        canceller.join(10)
        assert vb.records() == []
        assert web.state() == before
        with pytest.raises(InterruptedBySignalError):
            vb.backup("web", stop=stop)  # it ends all calls from then on
        assert vb.backup("web").level is Level.FULL


def test_errors_say_what_a_program_needs(lab: Lab, web: Machine, repository: Path) -> None:
    with api.connect(lab.uri, repository=repository) as vb, ThreadPoolExecutor(1) as pool:
        with pytest.raises(DomainNotFoundError) as unknown:
            vb.backup("wbe")
        assert (unknown.value.status, unknown.value.evidence()["domain"]) == (4, "wbe")
        with pytest.raises(DiskError) as no_disk:
            vb.backup(BackupRequest("web", disks=("vdz",)))
        assert (no_disk.value.status, no_disk.value.dev) == (5, "vdz")
        with pytest.raises(BaseError) as no_base:
            vb.backup(BackupRequest("web", level=Level.INCREMENTAL))
        assert (no_base.value.dev, no_base.value.level, no_base.value.checkpoint) == ("vda", "incremental", None)
        copying, seen = threading.Event(), threading.Event()

        def wait() -> None:
            copying.set()
            seen.wait(60)

        first = pool.submit(vb.backup, BackupRequest("web", speed_bytes_s=8 * MIB), reporter=Events(wait))
        try:
            assert copying.wait(60)
            with pytest.raises(BusyError):
                vb.backup("web")
        finally:
            seen.set()
        assert first.result(60).level is Level.FULL


# the page


def examples() -> list[str]:
    document: nodes.document = publish_doctree(PAGE.read_text(), settings_overrides={"report_level": 2})
    blocks = [one.astext() for one in document.findall(nodes.literal_block)]
    return [block for block in blocks if "import" in block]


def test_examples_of_the_page_work(
    web: Machine,
    lab: Lab,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    sockets: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each with a new repository; what one restores is what the disk holds."""
    config = tmp_path / "vbackup.toml"
    # Without times no run of it is due.
    config.write_text(f'[repository.main]\npath = "{tmp_path}/main"\n[job.nightly]\nconnect = ["{lab.uri}"]\n')
    config.chmod(0o600)
    monkeypatch.setattr(config_documents, "default_paths", lambda: (config,))
    monkeypatch.setenv("VBACKUP_STATE", os.fspath(tmp_path / "state"))
    lab.boot("db", [DiskSpec(tmp_path / "db.qcow2", size="1M")])
    expected = tmp_path / "expected.qcow2"
    DiskSpec(expected, size="16M").create()
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 1 0 12M", os.fspath(expected)], check=True)
    hosts = tmp_path / "hosts"
    hosts.write_text(f"{lab.uri}\n")
    sources = examples()
    assert len(sources) > 5
    for number, source in enumerate(sources):
        place = tmp_path / f"example{number}"
        vb = api.connect(repository=api.create_repository(place / "repository"))
        capsys.readouterr()
        here = source.replace("qemu:///system", lab.uri).replace("/srv/backup", os.fspath(place / "repository"))
        here = here.replace("/restored", os.fspath(place / "restored")).replace("/var/tmp", os.fspath(place))
        here = here.replace("/etc/vbackup/hosts", os.fspath(hosts)).replace("/etc/vbackup/vbackup.toml", str(config))
        exec(compile(here, f"example {number}", "exec"), {"__name__": "example"})
        backups = {one.name: len(one.backups) for one in vb.records()}
        assert backups.get("web", 0) == ("/srv/backup" in source), source
        printed = capsys.readouterr()
        assert "status" not in printed.out
        assert printed.err == ""
        for image in place.glob("restored/vda.*"):
            compare(image, expected)
    assert len([*tmp_path.glob("example*/restored/vda.*")]) == 2
