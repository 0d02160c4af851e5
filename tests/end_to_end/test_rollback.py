"""Rolling disks back by changed blocks: real images, real storage daemons, compared byte for byte.

VBACKUP_KILLS=1 kills a rollback at every step, and VBACKUP_ROLLBACKS=8 takes eight random histories that are longer.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.daemon import wait_for
from tests.end_to_end.chains import Chain, levels, reasons
from tests.end_to_end.test_offline import PASSPHRASE, luks, luks_disks, storage_daemons, write, write_luks
from tests.lab import DiskSpec, Lab, compare, domain_xml, qemu_img_info, qemu_io
from tests.unit.builders import Recorder
from vbackup import errors
from vbackup.domain import access
from vbackup.engine import rollback as engine
from vbackup.errors import (
    BusyError,
    DamagedError,
    InterruptedBySignalError,
    OutputDiffersError,
    StorageError,
    UnsuitableError,
)
from vbackup.operations import rollback
from vbackup.operations.rollback import RollbackRequest, RolledBack
from vbackup.qemu.storage_daemon import StorageDaemon
from vbackup.repository import chosen, restored
from vbackup.repository.choice import Wanted
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

if TYPE_CHECKING:
    from tests.conftest import Command
    from vbackup.domain.host import DomainHandle

#: Of the steps at which a rollback is killed, every which one; VBACKUP_KILLS=1 takes them all.
EVERY = int(os.environ.get("VBACKUP_KILLS", "20"))
#: How many random histories; each takes some seconds.
SEEDS = int(os.environ.get("VBACKUP_ROLLBACKS", "1"))


class Rolled:
    """A domain that is off, its backups and a copy of its disks at each of them."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.copies: dict[str, dict[str, Path]] = {}
        self.repository = Repository.open(chain.repository)
        chain.machine.destroy()

    def backup(self, *options: str) -> dict[str, Any]:
        done = self.chain.run(*options).document
        self.copies[done["id"]] = {spec.dev: self.copy(spec, f"{done['id']}") for spec in self.chain.specs}
        return done

    def copy(self, spec: DiskSpec, name: str) -> Path:
        path = self.chain.tmp_path / f"{name}-{spec.dev}.raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", str(spec.path), str(path)], check=True)
        return path

    def roll(self, backup: str, *disks: str, **request: Any) -> tuple[list[RolledBack], dict[str, str], Recorder]:
        return self.roll_with(self.chain.machine.handle, backup, *disks, **request)

    def roll_with(
        self, handle: DomainHandle, backup: str, *disks: str, **request: Any
    ) -> tuple[list[RolledBack], dict[str, str], Recorder]:
        reporter = Recorder()
        wanted = Wanted(backup, disks=disks)
        with (
            self.repository.lock(self.chain.uuid),
            chosen.held(self.repository, self.chain.uuid, wanted, stop=Stop()) as point,
            rollback.prepared(
                RollbackRequest(**request),
                handle,
                point,
                repository=self.repository,
                reporter=reporter,
                stop=Stop(),
            ) as ready,
        ):
            done = ready.run()
            return done, dict(ready.reasons), reporter

    def compare(self, backup: str, *devs: str) -> None:
        for spec in self.chain.specs:
            if spec.dev in (devs or ("vda", "vdb")):
                compare_content(spec.path, self.copies[backup][spec.dev])

    def restored(self, backup: str) -> None:
        """What is restored of a backup is what the disks were."""
        output = self.chain.tmp_path / f"restored-{backup}"
        self.chain.command(
            "-q", "restore", "bases", "-r", self.chain.repository, "--backup", backup, "--output", output
        )
        for spec in self.chain.specs:
            compare_content(output / f"{spec.dev}.qcow2", self.copies[backup][spec.dev])
        shutil.rmtree(output)  # a test can remove the backup, and make another one in the same second


def compare_content(image: Path, copy: Path) -> None:
    done = subprocess.run(
        ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(image), str(copy)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{image} and {copy}: {done.stdout}{done.stderr}"
    assert qemu_img_info(image)["virtual-size"] == copy.stat().st_size


@pytest.fixture
def rolled(chain: Chain) -> Rolled:
    return Rolled(chain)


def test_only_what_differs_is_written_and_the_next_backup_starts_from_the_point(rolled: Rolled) -> None:
    vda = rolled.chain.specs[0].path
    first = rolled.backup()
    write(vda, "write -P 2 1M 64k", "write -z 128k 64k")
    second = rolled.backup()
    write(vda, "write -P 3 4M 128k")
    done, reasons_, reporter = rolled.roll(first["id"])
    assert reasons_ == {}
    assert reporter.warnings == []
    rolled.compare(first["id"])
    # The last granule is written with every one (vbackup.engine.endmark).
    assert {one.dev: one.written_bytes for one in done} == {"vda": 5 << 16, "vdb": 1 << 16}
    write(vda, "write -P 4 6M 64k")
    third = rolled.backup()
    assert levels(third) == {"vda": "incremental", "vdb": "incremental"}
    assert {disk["base"] for disk in third["disks"]} == {first["id"]}
    assert third["disks"][0]["copied_bytes"] == 2 << 16
    for each in (first, second, third):
        rolled.restored(each["id"])


def start(rolled: Rolled) -> None:
    rolled.chain.machine.handle.domain.create()


def stop(rolled: Rolled) -> None:
    rolled.chain.machine.destroy()


def resize(path: Path, size: str) -> None:
    subprocess.run(["qemu-img", "resize", "-q", "--shrink", str(path), size], check=True)


def change(rolled: Rolled, choose: random.Random, value: int) -> None:
    """Something is written to each disk, by the guest or while the domain is off."""
    for spec in rolled.chain.specs:
        size = qemu_img_info(spec.path)["virtual-size"] >> 10
        commands = []
        for _ in range(choose.randrange(1, 5)):
            verb = choose.choice([f"write -P {value}", "write -z", "discard", "write -z -u", "write -P 0"])
            length = choose.choice([4, 64, 100, 448])
            commands.append(f"{verb} {choose.randrange(size - length) & ~3}k {length}k")
        if choose.random() < 0.3:
            start(rolled)
            rolled.chain.machine.write(spec.dev, *commands)
            stop(rolled)
        else:
            write(spec.path, *commands)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_rounds(rolled: Rolled, seed: int) -> None:
    """Whatever was written, zeroed, discarded and resized, by the guest or while the domain was off."""
    choose = random.Random(13 + seed)
    made: list[str] = []
    for number in range(7 if SEEDS == 1 else 20):
        change(rolled, choose, number + 1)
        what = choose.random()
        if what < 0.5 or len(made) < 3:
            made.append(rolled.backup()["id"])
            continue
        if what < 0.6:
            size = choose.choice(["8M", "12M", str((8 << 20) + 512 * choose.randrange(99))])
            resize(rolled.chain.specs[0].path, size)
        wanted = choose.choice(made)
        devs = choose.choice([(), (), ("vda",), ("vdb",)])
        done, full, _ = rolled.roll(wanted, *devs)
        assert {one.dev for one in done} | set(full) == set(devs or ("vda", "vdb"))
        assert all(dev == "vda" and "shrunk" in reason for dev, reason in full.items()), full
        for one in done:
            rolled.compare(wanted, one.dev)
        if choose.random() < 0.5 and not full:
            next_one = rolled.backup()
            made.append(next_one["id"])
            assert set(levels(next_one).values()) == {"incremental"}, reasons(next_one)
    for each in made:
        rolled.restored(each)


@pytest.mark.parametrize("committed", [False, True])
def test_snapshot_in_between(rolled: Rolled, committed: bool) -> None:
    chain = rolled.chain
    first = rolled.backup()
    start(rolled)
    chain.machine.write("vda", "write -P 5 1M 1M")
    overlay = chain.tmp_path / "overlay.qcow2"
    xml = (
        f"<domainsnapshot><disks><disk name='vda'><source file='{overlay}'/></disk><disk name='vdb' snapshot='no'/>"
        "</disks></domainsnapshot>"
    )
    chain.machine.handle.domain.snapshotCreateXML(xml, 16 | 4)  # DISK_ONLY, NO_METADATA
    chain.machine.write("vda", "write -P 6 1536k 1M", "write -z 0 64k")
    if committed:
        commit(rolled)
    stop(rolled)
    path = chain.specs[0].path if committed else overlay
    chain.specs[0] = DiskSpec(path, size="8M")
    assert rolled.roll(first["id"])[1] == {}
    rolled.compare(first["id"])
    write(path, "write -P 7 5M 64k")
    start(rolled)
    chain.machine.write("vda", "write -P 8 6M 64k")
    if not committed:
        commit(rolled)
    stop(rolled)
    chain.specs[0] = DiskSpec(chain.tmp_path / "vda.qcow2", size="8M")
    second = rolled.backup()
    assert levels(second) == {"vda": "incremental", "vdb": "incremental"}, reasons(second)
    assert second["disks"][0]["base"] == first["id"]
    rolled.restored(second["id"])


def commit(rolled: Rolled) -> None:
    domain = rolled.chain.machine.handle.domain
    domain.blockCommit("vda", None, None, 0, 4)  # ACTIVE
    deadline = time.monotonic() + 30
    while True:
        info = domain.blockJobInfo("vda")
        if info and info["cur"] == info["end"] and info["end"]:
            try:
                domain.blockJobAbort("vda", 2)  # PIVOT
                return
            except Exception:  # noqa: BLE001 - not ready yet
                pass
        assert time.monotonic() < deadline
        time.sleep(0.05)


class LocalHost:
    uri = None
    is_local = True

    @staticmethod
    def volume_path(pool: str, volume: str) -> str:
        raise AssertionError((pool, volume))

    secret_value = volume_path


class Off:
    """What a rollback asks of a domain that is off, without libvirt: its threads do not outlive a fork."""

    host = LocalHost()

    def __init__(self, rolled: Rolled) -> None:
        self.name, self.uuid, self._xml = "bases", rolled.chain.uuid, rolled.chain.machine.handle.live_xml()

    def live_xml(self) -> str:
        return self._xml

    def is_active(self) -> bool:
        return False

    def has_managed_save(self) -> bool:
        return False


def in_child(work: Callable[[], None], *, at: int, how: Callable[[StorageDaemon | None], None]) -> int:
    """Run the work in a child, which calls ``how`` before or after a command for its daemon; return its status."""
    pid = os.fork()
    if pid == 0:
        count = 0
        execute = StorageDaemon.execute

        def step(daemon: StorageDaemon) -> None:
            nonlocal count
            count += 1
            if count == at:
                how(daemon)

        def stepped(daemon: StorageDaemon, *arguments: Any, **named: Any) -> Any:
            step(daemon)
            done = execute(daemon, *arguments, **named)
            step(daemon)
            return done

        StorageDaemon.execute = stepped  # type: ignore[method-assign]
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_vbackup(_daemon: StorageDaemon | None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_daemon(daemon: StorageDaemon | None) -> None:
    assert daemon is not None
    os.kill(daemon.pid, signal.SIGKILL)


def marks(path: Path) -> list[str]:
    bitmaps = qemu_img_info(path)["format-specific"]["data"].get("bitmaps", [])
    return [one["name"] for one in bitmaps if one["name"].endswith("-rollback")]


@pytest.mark.parametrize("how", [kill_vbackup, kill_daemon])
def test_killed_at_every_step_and_run_again(rolled: Rolled, how: Callable[[StorageDaemon | None], None]) -> None:
    """Killed, it leaves the disks as they were, or marked; run again it is right, or says why a full is needed."""
    vda, vdb = (spec.path for spec in rolled.chain.specs)
    first = rolled.backup()
    write(vda, "write -P 2 1M 256k", "write -z 128k 64k")
    rolled.backup()
    write(vda, "write -P 3 4M 1M", "discard 64k 64k")
    write(vdb, "write -P 3 3M 64k")
    before = {path: path.read_bytes() for path in (vda, vdb)}
    copies = {spec.dev: rolled.copy(spec, "before") for spec in rolled.chain.specs}
    records = rolled.chain.repository / rolled.chain.uuid / "restored.json"
    off: Any = Off(rolled)
    at, ended_well, again = 1, 0, 0
    while True:
        for path, content in before.items():
            with path.open("r+b") as file:  # the same inode
                file.write(content)
                file.truncate(len(content))
        records.unlink(missing_ok=True)
        status = in_child(lambda: rolled.roll_with(off, first["id"]) and None, at=at, how=how)
        wait_for(lambda: not storage_daemons(rolled.chain.tmp_path), "the end of the storage daemon")
        if status == 0:
            ended_well += 1
            break
        for spec in rolled.chain.specs:
            if not marks(spec.path):
                try:
                    compare_content(spec.path, copies[spec.dev])
                except AssertionError:
                    rolled.compare(first["id"], spec.dev)
        done, reasons_, _ = rolled.roll_with(off, first["id"])
        assert all("inconsistent" in reason for reason in reasons_.values()), reasons_
        assert not (reasons_ and how is kill_vbackup)
        again += not reasons_
        for one in done:
            rolled.compare(first["id"], one.dev)
        assert not any(marks(spec.path) for spec in rolled.chain.specs if spec.dev not in reasons_)
        if at % (4 * EVERY) == 1 and not reasons_:
            write(vda, "write -P 9 2M 64k")
            third = rolled.backup()
            assert {disk["base"] for disk in third["disks"]} == {first["id"]}
            rolled.restored(third["id"])
            shutil.rmtree(rolled.chain.repository / rolled.chain.uuid / third["id"])
        at += EVERY
    assert again
    assert ended_well
    rolled.compare(first["id"])


def test_interrupted_rollback_is_not_backed_up(rolled: Rolled) -> None:
    first = rolled.backup()
    write(rolled.chain.specs[0].path, "write -P 3 4M 1M")
    interrupt(rolled, first["id"])
    refused = rolled.chain.run(status=5).stderr
    assert f"a rollback to backup {first['id']} was interrupted" in refused
    again = errors.command(f"vbackup restore bases {first['id']} --in-place", rolled.chain.lab.uri)
    assert f"'{again}' with this repository" in refused
    other = rolled.chain.tmp_path / "other"
    rolled.chain.command("init", "-r", other)
    refused = rolled.chain.command(
        "-c", rolled.chain.lab.uri, "backup", "bases", "-r", other, status=5
    ).stderr  # fmt: skip
    assert f"backup {first['id']} of repository {rolled.repository.id} was interrupted" in refused
    assert f"'{again}' with that repository" in refused
    assert levels(rolled.backup("--exclude-disk", "vda")) == {"vdb": "incremental"}
    rolled.roll(first["id"], "vda")
    rolled.compare(first["id"], "vda")
    assert set(levels(rolled.backup()).values()) == {"incremental"}


def interrupt(rolled: Rolled, backup: str) -> None:
    """Roll vda back, but for the end."""

    def fail(*_: object) -> None:
        raise StorageError("made up")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_verify", fail)
        with pytest.raises(StorageError):
            rolled.roll(backup, "vda")


def test_mark_can_be_removed_by_who_wants_to_keep_the_disk(rolled: Rolled) -> None:
    first = rolled.backup()
    write(rolled.chain.specs[0].path, "write -P 3 4M 1M")
    interrupt(rolled, first["id"])
    refused = rolled.chain.run(status=5).stderr
    (name,) = marks(rolled.chain.specs[0].path)
    assert errors.command(f"vbackup bitmap remove bases {name}", rolled.chain.lab.uri) in " ".join(refused.split())
    rolled.chain.command("-c", rolled.chain.lab.uri, "bitmap", "remove", "bases", name)
    done = rolled.backup()
    assert set(levels(done).values()) == {"incremental"}
    rolled.restored(done["id"])


def test_damage_in_the_repository_never_reaches_the_disk(rolled: Rolled) -> None:
    vda = rolled.chain.specs[0].path
    first = rolled.backup()
    write(vda, "write -P 3 64k 256k")
    image = rolled.chain.repository / rolled.chain.uuid / first["id"] / "vda.qcow2"
    mapped = subprocess.run(["qemu-img", "map", "--output=json", str(image)], capture_output=True, check=True)
    place = next(one["offset"] for one in json.loads(mapped.stdout) if one.get("offset") and one["start"] == 0)
    with image.open("r+b") as file:
        file.seek(place + (128 << 10) + 5)
        file.write(b"x")
    before = rolled.copy(rolled.chain.specs[0], "before")
    with pytest.raises(DamagedError) as caught:
        rolled.roll(first["id"])
    assert (caught.value.start_bytes, caught.value.length_bytes) == (128 << 10, 64 << 10)
    compare_content(vda, before)
    assert not marks(vda)
    assert set(levels(rolled.chain.run().document).values()) == {"incremental"}


def test_what_cannot_be_trusted_needs_a_full_restore_and_says_why(rolled: Rolled) -> None:
    vda, vdb = (spec.path for spec in rolled.chain.specs)
    first = rolled.backup()
    before = {path: path.read_bytes() for path in (vda, vdb)}
    name = next(
        one["name"] for one in qemu_img_info(vda)["format-specific"]["data"]["bitmaps"] if "-end-" not in one["name"]
    )
    subprocess.run(["qemu-img", "bitmap", "--remove", str(vda), name], check=True)
    done, reasons_, _ = rolled.roll(first["id"])
    assert [one.dev for one in done] == ["vdb"]
    assert reasons_ == {"vda": f"checkpoint {first['id']} is missing from the image"}
    vda.write_bytes(before[vda])
    rolled.chain.machine.handle.domain.create()
    with pytest.raises(UnsuitableError, match="is running"):
        rolled.roll(first["id"])
    rolled.chain.machine.destroy()
    with qemu_io(vda), pytest.raises(BusyError):
        rolled.roll(first["id"])
    rolled.chain.machine.handle.domain.create()
    rolled.chain.machine.handle.domain.managedSave(0)
    with pytest.raises(UnsuitableError, match="has saved memory"):
        rolled.roll(first["id"])


def test_speed_limit_and_no_checkpoint(rolled: Rolled) -> None:
    first = rolled.backup()
    write(rolled.chain.specs[0].path, "write -P 3 4M 1M")
    second = rolled.backup()
    rolled.roll(first["id"], checkpoint=False, speed_bytes_s=64 << 20)
    rolled.compare(first["id"])
    third = rolled.backup()
    assert {disk["base"] for disk in third["disks"]} == {second["id"]}
    rolled.restored(third["id"])


class OffChain(Chain):
    """Disks of any kind, of a domain that is never started."""

    def __init__(self, lab: Lab, command: Command, repository: Path, tmp_path: Path, disks: list[str]) -> None:
        self.lab, self.command, self.repository, self.tmp_path = lab, command, repository, tmp_path
        self.specs = []
        self.machine = lab.define(domain_xml("bases", disks))
        self.uuid = self.machine.handle.uuid


def test_kinds_of_images(lab: Lab, command: Command, repository: Path, tmp_path: Path) -> None:
    """An encrypted one stays encrypted; clusters of 2 MiB; a raw one and one with a data file need a full restore."""
    encrypted, encrypted_raw = luks(tmp_path)
    secret = lab.secrets.secretDefineXML("<secret ephemeral='no'/>")
    secret.setValue(PASSPHRASE.encode(), 0)
    by_uuid = f"uuid='{secret.UUIDString()}'"
    specs = [DiskSpec(tmp_path / "vdc.qcow2", dev="vdc"), DiskSpec(tmp_path / "vdd.qcow2", dev="vdd")]
    for spec, option in zip(specs, ("cluster_size=2M", f"data_file={tmp_path / 'data'}")):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", option, spec.path, "8M"], check=True)
    disks = [*luks_disks((encrypted, encrypted_raw), (by_uuid, by_uuid)), *(spec.xml() for spec in specs)]
    chain = OffChain(lab, command, repository, tmp_path, disks)
    rolled = Rolled(chain)

    def change(*commands: str) -> None:
        for one in commands:
            write_luks(encrypted, one)
            write_luks(encrypted_raw, one)
        for spec in specs:
            write(spec.path, *commands)

    change("write -P 1 0 2M", "write -P 2 5M 64k")
    first = chain.run("--compress").document
    change("write -P 3 64k 1M", "write -z 5M 64k", "write -P 4 7M 64k")
    chain.run("--compress")
    change("write -P 5 6M 4k")
    done, full, _ = rolled.roll(first["id"])
    assert [one.dev for one in done] == ["vda", "vdc"]
    assert full["vdb"] == "QEMU keeps no bitmap in a luks image while the domain is off"
    assert "data file" in full["vdd"]
    assert qemu_img_info(encrypted)["encrypted"]
    copy, incremental = chain.run("--level", "copy").document, chain.run().document
    assert [disk["base"] for disk in incremental["disks"]] == [first["id"], None, first["id"], None]
    outputs = []
    for one in (first, copy, incremental):
        outputs.append(tmp_path / f"out-{one['id']}")
        argv = ["-q", "restore", "bases", one["id"], "-r", chain.repository, "--disk", "vda", "vdc"]
        command(*argv, "--output", outputs[-1])
    for dev in ("vda", "vdc"):
        for other in outputs[1:]:
            compare(outputs[0] / f"{dev}.qcow2", other / f"{dev}.qcow2")


def in_place(rolled: Rolled, *options: str, status: int = 0) -> Any:
    chain = rolled.chain
    return chain.command(
        "-c", chain.lab.uri, "restore", "bases", "-r", chain.repository, "--in-place", *options, status=status
    )


def test_command_restores_in_place_all_disks_or_none(rolled: Rolled, monkeypatch: pytest.MonkeyPatch) -> None:
    vda, vdb = (spec.path for spec in rolled.chain.specs)
    first = rolled.backup()
    write(vda, "write -P 2 1M 64k")
    rolled.backup()
    write(vdb, "write -P 3 4M 128k")
    document = in_place(rolled, "--backup", first["id"], "--json").document  # operations.restore_in_place
    assert document["schema"] == "vbackup.rollback/1"
    assert document["machine_untouched"] == []
    assert {one["dev"]: one["written_bytes"] for one in document["disks"]} == {"vda": 2 << 16, "vdb": 3 << 16}
    rolled.compare(first["id"])
    assert levels(rolled.backup()) == {"vda": "incremental", "vdb": "incremental"}

    stored = qemu_img_info(vdb)["format-specific"]["data"]["bitmaps"]
    for name in [one["name"] for one in stored]:
        subprocess.run(["qemu-img", "bitmap", "--remove", "-f", "qcow2", str(vdb), name], check=True)
    write(vda, "write -P 4 2M 64k")
    copies = [rolled.copy(spec, "before") for spec in rolled.chain.specs]
    with monkeypatch.context() as patch:
        patch.setattr(access, "LOCAL_FILE_SYSTEMS", frozenset())  # as on a network filesystem
        said = in_place(rolled, "--backup", first["id"], status=5).stderr
    assert "Disk vda: it cannot be rolled back by writing only what differs" in said
    assert f"vbackup restore bases --backup={first['id']} --output=DIR" in said
    for path, copy in zip((vda, vdb), copies):
        compare_content(path, copy)
    assert levels(rolled.backup()) == {"vda": "incremental", "vdb": "full"}

    start(rolled)
    assert "is running" in in_place(rolled, "--backup", first["id"], status=5).stderr


def test_command_passes_the_speed_on_and_says_what_may_not_fit(rolled: Rolled, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rolled.backup()
    rolled.backup("--disk", "vda")
    write(rolled.chain.specs[0].path, "write -P 2 1M 64k")
    job, jobs_of = engine._job, []

    def seen(*arguments: Any) -> Any:
        jobs_of.append(job(*arguments))
        return jobs_of[-1]

    monkeypatch.setattr(engine, "_job", seen)
    outcome = in_place(rolled, "--mixed", "--speed", "50M")
    assert {one.speed for one in jobs_of} == {50 << 20}
    assert f"vdb of {first['id']}" in outcome.stderr
    assert "what spans them may not fit together" in outcome.stderr


def test_domain_without_backups_is_not_restored_in_place(chain: Chain, tmp_path: Path) -> None:
    chain.stop()
    repository = tmp_path / "empty"
    chain.command("init", "-r", repository)
    chain.machine = chain.lab.define(chain.xml())
    argv = ("-c", chain.lab.uri, "restore", "bases", "-r", repository, "--in-place")
    assert f"No domain 'bases ({chain.uuid})' in {repository}" in chain.command(*argv, status=4).stderr
    assert sorted(path.name for path in repository.iterdir()) == ["vbackup.json"]


def test_command_says_which_disks_stay_as_they_are(rolled: Rolled) -> None:
    done = rolled.backup("--disk", "vda")
    write(rolled.chain.specs[0].path, "write -P 2 1M 64k")
    asked = ("--backup", done["id"], "--disk", "vda")
    assert "stay as they are" not in in_place(rolled, *asked).stderr
    outcome = in_place(rolled, "--backup", done["id"])
    assert "stay as they are: vdb" in outcome.stderr
    assert f"  vda: as in backup {done['id']}, " in outcome.stdout
    rolled.compare(done["id"], "vda")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--in-place", "--format", "raw"), "--format is for a restore with --output"),
        (("--in-place", "--output", "/nowhere"), "not allowed with argument"),
        (("--output", "/nowhere", "--exclusive"), "--exclusive is for a restore with --in-place"),
        (("--output", "/nowhere", "--keep-old"), "--keep-old is for a restore with --in-place"),
        (("--in-place", "--disk", "vda=/nowhere"), "with --in-place a disk stays where it is"),
        (("--output", "/nowhere", "--disk", "vda="), "give the name of a disk and a path"),
        (("--output", "/nowhere", "--disk", "vda=/a", "vda=/b"), "vda is given twice"),
        (("--output", "/nowhere", "--wait-lock", "1"), "--wait-lock is for a restore with --in-place"),
        ((), "One of the arguments --output --in-place is required"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    command: Command, repository: Path, options: tuple[str, ...], said: str
) -> None:
    assert said in command("restore", "bases", "-r", repository, *options, status=2).stderr


# what a review found


def clusters_of_2_mib(rolled: Rolled) -> None:
    for spec in rolled.chain.specs:
        spec.path.unlink()
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", str(spec.path), "8M"], check=True
        )


def damage(rolled: Rolled, backup: str, at: int) -> None:
    """Change the content of the disk vda at that place in the image of a backup."""
    image = rolled.chain.repository / rolled.chain.uuid / backup / "vda.qcow2"
    mapped = subprocess.run(["qemu-img", "map", "--output=json", str(image)], capture_output=True, check=True)
    one = next(one for one in json.loads(mapped.stdout) if one["start"] <= at < one["start"] + one["length"])
    with image.open("r+b") as file:
        file.seek(one["offset"] + at - one["start"])
        file.write(b"x")


def test_what_qemu_writes_together_is_compared_together(rolled: Rolled) -> None:
    """It writes whole clusters of the disk's image."""
    clusters_of_2_mib(rolled)
    vda = rolled.chain.specs[0].path
    write(vda, "write -P 1 0 4M")
    first = rolled.backup()
    write(vda, "write -P 2 2M 64k")
    damage(rolled, first["id"], (3 << 20) + 5)
    before = rolled.copy(rolled.chain.specs[0], "before")
    with pytest.raises(DamagedError):
        rolled.roll(first["id"], "vda")
    compare_content(vda, before)
    damage(rolled, first["id"], (1 << 20) + 5)  # in another cluster it does not matter
    assert not marks(vda)


def test_old_data_behind_the_end_of_a_disk_does_not_come_back(rolled: Rolled) -> None:
    clusters_of_2_mib(rolled)
    vda = rolled.chain.specs[0].path
    resize(vda, "6M")
    large = rolled.backup()
    write(vda, "write -P 7 4M 2M")
    resize(vda, str((4 << 20) + (64 << 10)))
    small = rolled.backup()
    assert rolled.roll(large["id"], "vda")[1] == {}
    rolled.compare(large["id"], "vda")
    assert rolled.roll(small["id"], "vda")[1] == {}
    rolled.compare(small["id"], "vda")
    resize(vda, "6M")
    grown = rolled.backup()
    assert "within a cluster of its image" in reasons(grown)["vda"]
    rolled.restored(grown["id"])


@pytest.mark.parametrize("size", ["4M", "12M"])
def test_interrupted_rollback_of_a_resized_disk_is_run_again(rolled: Rolled, size: str) -> None:
    vda = rolled.chain.specs[0].path
    write(vda, "write -P 1 0 8M")
    first = rolled.backup()
    if size == "4M":
        rolled.backup()  # the shrunk disk gets a full
        resize(vda, size)
        rolled.backup()
    else:
        resize(vda, size)
        write(vda, "write -P 2 2M 9M")
    interrupt(rolled, first["id"])
    assert marks(vda)
    assert rolled.roll(first["id"], "vda")[1] == {}
    rolled.compare(first["id"], "vda")
    assert not marks(vda)
    write(vda, "write -P 3 3M 64k")
    third = rolled.backup()
    assert third["disks"][0]["base"] == first["id"]
    rolled.restored(third["id"])


def test_disk_that_is_not_as_it_was_written_is_an_error(rolled: Rolled, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rolled.backup()
    write(rolled.chain.specs[0].path, "write -P 3 4M 1M")
    monkeypatch.setattr(engine, "_copy", lambda *_: None)
    with pytest.raises(OutputDiffersError) as caught:
        rolled.roll(first["id"], "vda")
    assert caught.value.start_bytes == 4 << 20
    assert marks(rolled.chain.specs[0].path)


def test_repository_that_is_only_read_costs_the_checkpoint_alone(
    rolled: Rolled, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = rolled.backup()
    write(rolled.chain.specs[0].path, "write -P 3 4M 1M")
    second = rolled.backup()

    def fails(*_: object) -> None:
        raise StorageError("The repository is read-only.")

    with monkeypatch.context() as patch:
        patch.setattr(restored, "add", fails)
        _, full, reporter = rolled.roll(first["id"])
    assert full == {}
    [warning] = reporter.warnings
    assert "starts from the newest one, and not from the restored one: The repository is read-only." in warning
    rolled.compare(first["id"])
    third = rolled.backup()
    assert {disk["base"] for disk in third["disks"]} == {second["id"]}
    rolled.restored(third["id"])


def test_mark_of_an_interrupted_rollback_outlives_forget_and_a_snapshot(rolled: Rolled) -> None:
    chain = rolled.chain
    vda = chain.specs[0].path
    first = rolled.backup()
    write(vda, "write -P 3 4M 1M")
    interrupt(rolled, first["id"])
    said = chain.command("-c", chain.lab.uri, "forget", "bases", "-r", chain.repository, status=None).stderr
    assert "a rollback was interrupted" in said
    (mark,) = marks(vda)
    assert mark in said
    start(rolled)
    xml = (
        f"<domainsnapshot><disks><disk name='vda'><source file='{chain.tmp_path / 'over.qcow2'}'/></disk>"
        "<disk name='vdb' snapshot='no'/></disks></domainsnapshot>"
    )
    chain.machine.handle.domain.snapshotCreateXML(xml, 16 | 4)  # DISK_ONLY, NO_METADATA
    assert f"bitmap remove bases {mark}" in chain.run(status=5).stderr  # libvirt gives the overlay one, too
    chain.command("-c", chain.lab.uri, "bitmap", "remove", "bases", mark)
    assert f"{vda} has the mark {mark}" in chain.run(status=5).stderr
    stop(rolled)
    assert "a layer below has the mark" in in_place(rolled, "--backup", first["id"], status=5).stderr


def test_damaged_list_of_the_point_is_no_reason_for_a_full_restore_of_it(rolled: Rolled) -> None:
    first = rolled.backup()
    write(rolled.chain.specs[0].path, "write -P 3 4M 1M")
    path = rolled.chain.repository / rolled.chain.uuid / first["id"] / "vda.blocks"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert "vda.blocks" in in_place(rolled, "--backup", first["id"], status=6).stderr


def test_rollback_that_ends_early_says_what_is_true(rolled: Rolled, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rolled.backup()
    write(rolled.chain.specs[0].path, "write -P 3 4M 1M")

    def stopped(*_: object) -> None:
        raise InterruptedBySignalError(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_verify", stopped)
        said = in_place(rolled, "--backup", first["id"], "--disk", "vda", status=143).stderr
    assert f"The rollback of vda (to {first['id']}) was interrupted" in said
    assert "run the same command again" in said
    assert "Stopped by SIGTERM; the disks are in the middle of a rollback." in said
    in_place(rolled, "--backup", first["id"])
    rolled.compare(first["id"])


def test_rollback_whose_daemon_is_killed_leads_to_a_full_restore(
    rolled: Rolled, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = rolled.backup()
    write(rolled.chain.specs[0].path, "write -P 3 4M 1M")
    copy = engine._copy

    def killed(*arguments: Any) -> None:
        copy(*arguments)
        (daemon,) = storage_daemons(rolled.chain.tmp_path)
        os.kill(daemon, signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_copy", killed)
        said = in_place(rolled, "--backup", first["id"], "--disk", "vda", status=1).stderr
    assert "run the same command again, which restores them in full" in said
    assert f"'vbackup restore bases {first['id']} --in-place -c " in rolled.chain.run(status=5).stderr
    said = in_place(rolled, "--backup", first["id"], "--disk", "vda").stderr
    assert "an interrupted rollback has left it half done" in said
    rolled.compare(first["id"], "vda")
    assert levels(rolled.backup()) == {"vda": "incremental", "vdb": "incremental"}
