"""Everything in random order: after each backup a restore is compared with what QEMU copied in the same transaction.

``make check`` takes a few steps of a fixed seed, ``make soak STEPS=500 SEED=7`` as many as you like; the seed of a
failure, which it prints with its steps, reproduces it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libvirt
import pytest

from tests.daemon import Daemon, end_domains, wait_for
from tests.end_to_end.test_migration import a_host
from tests.guest import Guest, build, make_disks
from tests.guest import domain_xml as guest_xml
from tests.lab import HEEDING_SIGNALS, DiskSpec, Machine, References, compare, domain_xml, qemu_img_info
from vbackup.domain.host import Host
from vbackup.repository.journal import Step

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome

STEPS = int(os.environ.get("VBACKUP_SOAK_STEPS", "30"))
SEED = int(os.environ.get("VBACKUP_SOAK_SEED", "20261124"))
NAME, UUID = "soak", "33333333-4444-5555-6666-777777777777"
MIB = 1024 * 1024
SIZE_MIB = 8
LEVELS = ("auto", "auto", "auto", "full", "incremental", "differential", "copy")
NO_METADATA = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA


class Soak:
    """One domain with a few disks, two repositories, and what may happen to them."""

    def __init__(self, daemon: Daemon, command: Command, directory: Path, dice: random.Random) -> None:
        self.daemon, self.command, self.directory, self.dice = daemon, command, directory, dice
        self.disks: dict[str, list[Path]] = {}  #: the layers of each, the active one first
        self.has_iothread = False  #: vda, which the firmware reads, so that it is in use
        self.sizes = {}
        self.repositories = [directory / "one", directory / "two"]
        self.count = 0
        #: SHA-256 of each disk of the backups that were compared with QEMU's copies, by repository and id.
        self.contents: dict[Path, dict[str, dict[str, str]]] = {repository: {} for repository in self.repositories}
        self.log: list[str] = []
        self._guest: Guest | None = None
        self._elsewhere: str | None = None  #: URI of the second host
        self._stack = ExitStack()
        for dev, image_format in (("vda", "qcow2"), ("vdb", "qcow2"), ("vdc", "raw")):
            self._make(dev, image_format)
        for repository in self.repositories:
            self.command("init", "-r", repository)
        self.start()

    def happenings(self) -> list[tuple[float, Callable[[], str | None]]]:
        """What may happen, with how often."""
        return [
            (8, self.write),
            (8, self.backup),
            (2, self.backup_that_is_killed),
            (1, self.restart),
            (1, self.kill_qemu),
            (1, self.dump_while_paused),
            (1, self.grow),
            (1, self.shrink_and_grow_again),
            (1, self.attach_or_detach),
            (2, self.snapshot),
            (1, self.commit),
            (1, self.swap_layer),
            (0.3, self.freeze_by_somebody_else),
            (0.3, self.arrive_paused),
            (0.6, self.prune),
            (0.4, self.consolidate),
            (0.4, self.verify),
            (0.6, self.audit),
            (0.6, self.restore_in_place),
        ]

    def step(self) -> None:
        weights, choices = zip(*self.happenings())
        [happening] = self.dice.choices(choices, weights)
        said = happening()
        self.log.append(f"{happening.__name__}: {said or '-'}")

    # what the guest does

    def write(self) -> str:
        dev = self.dice.choice(list(self.disks))
        offset_kib = self.dice.randrange(self.sizes[dev] // 1024 // 4) * 4
        length_kib = min(self.dice.choice((4, 64, 256)), self.sizes[dev] // 1024 - offset_kib)
        kind = self.dice.choice((f"write -P {self.dice.randrange(1, 256)}", "write -z", "write -z -u", "discard"))
        if dev == "vda" and self.has_iothread and kind.startswith("write -z"):
            kind = "write -P 0"  # HMP qemu-io of 7.2 runs the iothread's event loop in the main thread, and QEMU aborts
        self.machine.write(dev, f"{kind} {offset_kib}k {length_kib}k")
        return f"{dev} {kind} {offset_kib}k {length_kib}k"

    # backups

    def backup(self) -> str:
        repository, level = self.dice.choice(self.repositories), self.dice.choice(LEVELS)
        fleecing = self.dice.choice(((), ("--fleecing", self.directory)))
        if fleecing and self.has_iothread and not self._survives_fleecing():
            refused = self._outcome(repository, level, *fleecing)
            assert refused.status == 5, refused.stderr
            assert "Disk vda: it has an iothread" in refused.stderr
            return "refused: an iothread"
        self.count += 1
        references = References(self._open_directory(f"references{self.count}"))
        with pytest.MonkeyPatch.context() as patch, references.taken(patch):
            done = self._run(repository, level, *fleecing)
        if done is None:
            return f"{level}: no base"
        images = references.finish(self.machine)
        self._check(repository, done, images)
        shutil.rmtree(references.directory)
        return f"{done['id']} into {repository.name}: {[(one['dev'], one['level']) for one in done['disks']]}"

    def _run(self, repository: Path, level: str, *options: str | Path) -> dict[str, Any] | None:
        """A backup; None where a level that was asked for by name has no base, which is then said by status 6."""
        outcome = self._outcome(repository, level, *options)
        if outcome.status == 6 and level in ("incremental", "differential"):
            assert re.search(rf"no {level} backup (since \S+ )?is possible", outcome.stderr), outcome.stderr
            return None
        assert outcome.status == 0, outcome.stderr
        return outcome.document

    def _outcome(self, repository: Path, level: str, *options: str | Path) -> Outcome:
        return self.command(
            "-c",
            self.daemon.uri,
            "-q",
            "backup",
            NAME,
            "-r",
            repository,
            "--level",
            level,
            "--json",
            *options,
            status=None,
        )

    def _survives_fleecing(self) -> bool:
        """Tell whether this QEMU can have a fleecing area for a disk with an iothread."""
        version = self.machine.execute("query-version")["qemu"]
        return (version["major"], version["minor"]) >= (9, 1)

    def _check(self, repository: Path, done: dict[str, Any], images: dict[str, Path]) -> None:
        output = self.directory / "out"
        self.command("-q", "restore", NAME, "-r", repository, "--backup", done["id"], "--output", output)
        for disk in done["disks"]:
            compare(output / disk["file"], images[disk["node_name"]])
        shutil.rmtree(output)
        self.contents[repository][done["id"]] = self._restored(repository, done["id"])

    def _restored(self, repository: Path, backup_id: str) -> dict[str, str]:
        """What a restore has of each disk: a SHA-256."""
        output = self.directory / "raw"
        options = ("--format", "raw", "--output", output)
        self.command("-q", "restore", NAME, "-r", repository, "--backup", backup_id, *options)
        found = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in output.glob("*.raw")}
        shutil.rmtree(output)
        return found

    def _check_all(self, repository: Path) -> int:
        """Every backup that is still there is what it was; returns how many there are."""
        there = [one["id"] for one in self.command("list", NAME, "-r", repository, "--json").document["backups"]]
        for backup_id, contents in self.contents[repository].items():
            if backup_id in there:
                assert self._restored(repository, backup_id) == contents, backup_id
        return len(there)

    # the repository

    def prune(self) -> str | None:
        repository = self.dice.choice(self.repositories)
        keep, way = self.dice.randrange(1, 5), self.dice.choice(("auto", "in-place", "copy", "never"))
        if not self.contents[repository]:
            return None
        if way == "in-place" and not self._is_possible(repository, keep):
            way = "auto"
        self.command("-q", "prune", NAME, "-r", repository, "--keep-last", str(keep), "--consolidate", way)
        return f"{repository.name}: {self._check_all(repository)} left of {keep} to keep, {way}"

    def _is_possible(self, repository: Path, keep: int) -> bool:
        """Tell whether all images can be merged in place: only one other takes over each, and no disk has grown."""
        options = ("--keep-last", str(keep), "--consolidate", "in-place", "--dry-run")
        return self.command("-q", "prune", NAME, "-r", repository, *options, status=None).status == 0

    def consolidate(self) -> str | None:
        repository = self.dice.choice(self.repositories)
        if not self.contents[repository]:
            return None
        there = [one["id"] for one in self.command("list", NAME, "-r", repository, "--json").document["backups"]]
        which = self.dice.choice(((self.dice.choice(there), "--full"), ("--max-chain", str(self.dice.randrange(1, 4)))))
        self.command("-q", "consolidate", NAME, *which, "-r", repository)
        self._check_all(repository)
        return f"{repository.name}: {' '.join(which)}"

    def verify(self) -> str | None:
        repository = self.dice.choice(self.repositories)
        if not self.contents[repository]:
            return None
        self.command("-q", "verify", NAME, "-r", repository)
        return repository.name

    def audit(self) -> str | None:
        repository = self.dice.choice(self.repositories)
        if not self.contents[repository]:
            return None
        options = ("-r", repository, "--sample", "100")
        outcome = self.command("-c", self.daemon.uri, "audit", NAME, *options, "--json", status=None)
        if outcome.status == 5:
            assert "nothing to audit" in outcome.stderr, outcome.stderr
            return f"{repository.name}: nothing to audit"
        assert outcome.status == 0, outcome.stderr
        return f"{repository.name}: {[one['dev'] for one in outcome.document['disks']]}"

    # backups

    def backup_that_is_killed(self) -> str:
        """It is finished or undone by whatever comes next."""
        step, when = self.dice.choice(list(Step)), self.dice.choice(("before", "after"))
        repository = self.dice.choice(self.repositories)
        argv = [*HEEDING_SIGNALS, sys.executable, "-m", "tests.end_to_end.killed", step.value, when, "kill", "--"]
        argv += ["-c", self.daemon.uri, "-q", "backup", NAME, "-r", str(repository)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == -signal.SIGKILL, done.stderr
        return f"{when} {step.value}"

    def freeze_by_somebody_else(self) -> str:
        """Of a second domain, which has an agent: it is backed up as it is, and stays frozen."""
        guest, repository = self._real_guest(), self.dice.choice(self.repositories)
        assert guest.machine.handle.domain.fsFreeze() > 0
        try:
            argv = ("-c", self.daemon.uri, "-q", "backup", guest.machine.name, "-r", repository, "--json")
            done = self.command(*argv, "--quiesce", self.dice.choice(("auto", "required")))
            assert (done.document["consistency"], done.document["frozen_ms"]) == ("filesystem", 0)
            assert guest.agent.filesystem_status() == "frozen"
        finally:
            guest.machine.handle.domain.fsThaw()
        return f"{done.document['id']} into {repository.name}"

    def _real_guest(self) -> Guest:
        """Boot the second domain when it is first needed."""
        if self._guest is None:
            directory = self._open_directory("guest")
            image = build(directory)
            serial = directory / "console"
            xml = guest_xml("watched", image, make_disks(directory), serial=serial)
            self._guest = Guest(self.daemon.start(xml), serial)
            self._guest.wait()
        return self._guest

    def restore_in_place(self) -> str | None:
        """To any backup: by what differs, or in full; or it is refused, and nothing is written."""
        repository = self.dice.choice(self.repositories)
        if not self.contents[repository] or self._is_busy():
            return None
        there = [one["id"] for one in self.command("list", NAME, "-r", repository, "--json").document["backups"]]
        backup_id = self.dice.choice(there)
        self.machine.destroy()
        wait_for(lambda: not self.machine.handle.is_active(), "the end of the domain")
        before = {dev: self._content(layers[0]) for dev, layers in self.disks.items()}
        domain = self.daemon.host.connection.defineXML(self._xml())
        try:
            argv = ("-q", "restore", NAME, backup_id, "-r", repository, "--in-place", "--json")
            outcome = self.command("-c", self.daemon.uri, *argv, status=None)
        finally:
            domain.undefine()
        if outcome.status == 5:
            assert "Nothing was written" in outcome.stderr, outcome.stderr
            assert {dev: self._content(layers[0]) for dev, layers in self.disks.items()} == before
            said = "refused"
        else:
            assert outcome.status == 0, outcome.stderr
            said = str([(one["dev"], "full" if one["full"] else "changes") for one in outcome.document["disks"]])
            for one in outcome.document["disks"]:
                active = self.disks[one["dev"]][0]
                assert self._content(active) == self.contents[repository][one["backup"]][one["dev"]], (one, backup_id)
                if one["full"]:
                    self.disks[one["dev"]] = [active]
                self.sizes[one["dev"]] = qemu_img_info(active)["virtual-size"]
        self.start()
        return f"{backup_id} of {repository.name}: {said}"

    def _content(self, image: Path) -> str:
        """A SHA-256 of what the disk has."""
        raw = self.directory / "content.raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", str(image), str(raw)], check=True, timeout=60)
        digest = hashlib.sha256(raw.read_bytes()).hexdigest()
        raw.unlink()
        return digest

    # what happens to the domain

    def start(self) -> None:
        self.has_iothread = self.dice.choice((True, False))
        self.machine = self.daemon.start(self._xml())

    def _xml(self) -> str:
        disks = [self._spec(dev).xml() for dev in self.disks]
        return domain_xml(NAME, disks, top=f"<uuid>{UUID}</uuid><iothreads>1</iothreads>")

    def restart(self) -> None:
        self.machine.destroy()
        self.start()

    def kill_qemu(self) -> None:
        os.kill(int(Path(f"/run/libvirt/qemu/{NAME}.pid").read_text()), signal.SIGKILL)
        wait_for(lambda: not self.machine.handle.is_active(), "libvirt noticing QEMU's death")
        self.start()

    def dump_while_paused(self) -> str | None:
        """QEMU does not have its images to itself then, until the guest runs again: as after a migration."""
        if self._is_busy():
            return None
        domain, path = self.machine.handle.domain, self.directory / "dump"
        domain.suspend()
        domain.coreDump(str(path), 0)
        path.unlink()
        repository = self.dice.choice(self.repositories)
        refused = self.command("-c", self.daemon.uri, "-q", "backup", NAME, "-r", repository, status=8)
        assert "does not have its images to itself" in refused.stderr
        domain.resume()
        return "a backup was refused"

    def arrive_paused(self) -> str | None:
        """By a migration to another host, where it is resumed, and from where it comes back."""
        if self._is_busy():
            return None
        elsewhere = self._second_host()
        for path in itertools.chain(*self.disks.values()):
            path.chmod(0o666)  # libvirtd takes it from the QEMU that has moved
        self._migrate(self.daemon.uri, elsewhere, "--suspend")
        with Host(elsewhere) as host:
            self.machine = Machine(host.domain(NAME))
            repository = self.dice.choice(self.repositories)
            argv = ("-c", elsewhere, "-q", "backup", NAME, "-r", repository)
            if self.machine.is_active():  # libvirt 11.3 lets QEMU have its images at once
                said = "a backup was made"
                self.command(*argv)
            else:
                said = "a backup was refused"
                assert "it arrived paused" in self.command(*argv, status=8).stderr
            self.machine.handle.resume()
            self.write()
            self._migrate(elsewhere, self.daemon.uri)
        self.machine = Machine(self.daemon.host.domain(NAME))
        return said

    def _migrate(self, here: str, there: str, *options: str) -> None:
        argv = ["virsh", "-c", here, "migrate", "--live", "--unsafe", *options, NAME, there]
        argv += ["--migrateuri", f"unix://{self.directory}/migration"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr

    def _second_host(self) -> str:
        """Start it when it is first needed."""
        if self._elsewhere is None:
            # QEMU, which is not root, makes the socket.
            self.directory.chmod(0o777)
            self._elsewhere = self._stack.enter_context(a_host(self.directory / "elsewhere"))
        return self._elsewhere

    def close(self) -> None:
        """End the second host, and what is left there."""
        if self._elsewhere is not None:
            with Host(self._elsewhere) as host:
                end_domains(host.connection)
        self._stack.close()

    def grow(self) -> str | None:
        dev = self.dice.choice(list(self.disks))
        if self.sizes[dev] >= 2 * SIZE_MIB * MIB or self._is_busy():
            return None
        # What QEMU was killed over is in its way, until a backup into each repository has removed it: QEMU's rule.
        way_out = ""
        if self._has_inconsistent_bitmap(self.disks[dev][0]):
            with pytest.raises(libvirt.libvirtError, match="is inconsistent and cannot be used"):
                self._resize(dev)
            for repository in self.repositories:
                self._run(repository, "auto")
            way_out = ", after a backup into each repository"
        self._resize(dev)
        self.sizes[dev] += MIB
        return dev + way_out

    def shrink_and_grow_again(self) -> str | None:
        """What was at the end is gone, and QEMU's bitmaps do not tell. Over a snapshot it is a documented limit."""
        dev = self.dice.choice(list(self.disks))
        [active, *below] = self.disks[dev]
        if below or self._is_busy() or self._has_inconsistent_bitmap(active):
            return None
        self._resize(dev, by_bytes=-self.dice.choice((4 * 1024, 64 * 1024, MIB)))
        self._resize(dev, by_bytes=0)
        return dev

    def _resize(self, dev: str, *, by_bytes: int = MIB) -> None:
        self.machine.handle.domain.blockResize(dev, self.sizes[dev] + by_bytes, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)

    def attach_or_detach(self) -> str | None:
        domain = self.machine.handle.domain
        if "vdd" in self.disks:
            if self._is_busy():
                return None
            # The firmware answers no request to unplug, so the disk goes with a restart.
            del self.disks["vdd"]
            self.restart()
            return "detached"
        self._make("vdd", "qcow2")
        domain.attachDevice(self._spec("vdd").xml())
        return "attached"

    def snapshot(self) -> str | None:
        dev = self.dice.choice([dev for dev in self.disks if self._format(dev) == "qcow2"])
        if len(self.disks[dev]) > 2 or self._is_busy():
            return None
        self.count += 1
        overlay = self.directory / f"{dev}-{self.count}.qcow2"
        others = "".join(f"<disk name='{other}' snapshot='no'/>" for other in self.disks if other != dev)
        self.machine.handle.domain.snapshotCreateXML(
            f"<domainsnapshot><name>s</name><disks><disk name='{dev}' snapshot='external'>"
            f"<source file='{overlay}'/></disk>{others}</disks></domainsnapshot>",
            NO_METADATA,
        )
        self.disks[dev].insert(0, overlay)
        return f"{dev}: {overlay.name}"

    def commit(self) -> str | None:
        layered = [dev for dev, layers in self.disks.items() if len(layers) > 1]
        if not layered or self._is_busy():
            return None
        dev = self.dice.choice(layered)
        domain = self.machine.handle.domain
        active, base = self.disks[dev][:2]
        # As for a resize, which a commit begins with where the layer below is the smaller one.
        fails = self._has_inconsistent_bitmap(base) and self._size_bytes(base) < self._size_bytes(active)
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE | libvirt.VIR_DOMAIN_BLOCK_COMMIT_SHALLOW
        domain.blockCommit(dev, None, None, 0, flags)
        wait_for(lambda: not self._is_committing() or self._can_pivot(), "the commit")
        assert self._is_committing() is not fails
        if fails:
            return f"{dev}: refused by QEMU"
        domain.blockJobAbort(dev, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
        wait_for(lambda: not self._is_committing(), "the pivot")
        self.disks[dev].pop(0)
        return dev

    def swap_layer(self) -> str | None:
        """What lies below an overlay changes while the domain is off, and the overlay's bitmaps cannot know."""
        layered = [dev for dev, layers in self.disks.items() if len(layers) > 1]
        if not layered or self._is_busy():
            return None
        dev = self.dice.choice(layered)
        self.machine.destroy()
        wait_for(lambda: not self.machine.handle.is_active(), "the end of the domain")
        over, below = self.disks[dev][:2]
        how = self.dice.choice(("written to", "moved to its name", "rebased", "dropped", "put back"))
        if how == "dropped" and len(self.disks[dev]) < 3:
            how = "written to"
        if how == "written to":
            self._write_image(below)
        elif how == "dropped":
            self._rebase(over, self.disks[dev][2])
            del self.disks[dev][1]
        else:
            self.count += 1
            other = below.with_name(f"{dev}-{self.count}{below.suffix}")
            shutil.copy2(below, other)
            if how != "put back":  # else the same bytes and the same times, in another file
                self._write_image(other)
            if how == "rebased":
                self._rebase(over, other)
                self.disks[dev][1] = other
            else:
                other.replace(below)
        self.start()
        return f"{dev}: {below.name} {how}"

    def _write_image(self, path: Path) -> None:
        offset_kib = self.dice.randrange(SIZE_MIB * 1024 // 64) * 64
        command = f"write -P {self.dice.randrange(1, 256)} {offset_kib}k 64k"
        argv = ["qemu-io", "-f", path.suffix[1:], "-c", command, str(path)]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
        assert "wrote 65536/65536" in done.stdout, done

    def _rebase(self, over: Path, below: Path) -> None:
        argv = ["qemu-img", "rebase", "-u", "-b", str(below), "-F", below.suffix[1:], str(over)]
        subprocess.run(argv, capture_output=True, check=True, timeout=60)

    def _is_committing(self) -> bool:
        return "<mirror" in self.machine.handle.live_xml()

    def _can_pivot(self) -> bool:
        return "ready='yes'" in self.machine.handle.live_xml()

    # helpers

    def _is_busy(self) -> bool:
        """True while the jobs of a backup that was killed are there: libvirt then refuses to touch the disk."""
        return self.machine.execute("query-jobs") != []

    def _node(self, path: Path) -> dict[str, Any]:
        """What QEMU says of the node of a qcow2 image."""
        nodes = self.machine.execute("query-named-block-nodes", flat=True)
        [node] = [one for one in nodes if one["file"] == str(path) and one["drv"] != "file"]
        assert isinstance(node, dict)
        return node

    def _has_inconsistent_bitmap(self, path: Path) -> bool:
        if path.suffix != ".qcow2":
            return False
        return any(one.get("inconsistent") for one in self._node(path).get("dirty-bitmaps", ()))

    def _size_bytes(self, path: Path) -> int:
        size_bytes: int = self._node(path)["image"]["virtual-size"]
        return size_bytes

    def _make(self, dev: str, image_format: str) -> None:
        self.count += 1
        path = self.directory / f"{dev}-{self.count}.{image_format}"
        self.disks[dev], self.sizes[dev] = [path], SIZE_MIB * MIB
        self._spec(dev).create()

    def _format(self, dev: str) -> str:
        return self.disks[dev][0].suffix[1:]

    def _spec(self, dev: str) -> DiskSpec:
        driver = "discard='unmap'" + (" iothread='1'" if dev == "vda" and self.has_iothread else "")
        return DiskSpec(self.disks[dev][0], dev=dev, format=self._format(dev), size=f"{SIZE_MIB}M", driver=driver)

    def _open_directory(self, name: str) -> Path:
        path = self.directory / name
        path.mkdir()
        path.chmod(0o777)
        return path


@pytest.fixture
def directory() -> Iterator[Path]:
    # QEMU, which is not root, has to reach what is in it: pytest's directories are closed to it.
    path = Path(tempfile.mkdtemp(prefix="vb-soak-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_everything_in_random_order(daemon: Daemon, command: Command, directory: Path) -> None:
    with closing(Soak(daemon, command, directory, random.Random(SEED))) as soak:
        try:
            for _ in range(STEPS):
                soak.step()
            soak.backup()
        except BaseException:
            print(f"seed {SEED}, after {len(soak.log)} steps:", *soak.log, sep="\n  ")
            raise
    for repository in soak.repositories:
        command("list", "-r", repository)
