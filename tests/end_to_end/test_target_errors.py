"""Errors of what a backup writes to, whatever their errno: what the guest sees of them, and what vbackup says.

The guest is tests.busy: it writes all the time, and says so if its disk fails.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.busy import BusyChain, BusyDisk
from tests.daemon import wait_for
from tests.end_to_end.chains import levels
from tests.filesystem import Ext4
from tests.lab import DiskSpec, References
from vbackup.images import targets
from vbackup.qemu import transaction as transactions

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome
    from tests.lab import Lab

LOST = "what the guest was about to overwrite"


@pytest.fixture
def area(tmp_path: Path) -> Path:
    path = tmp_path / "area"
    path.mkdir()
    return path


def busy(lab: Lab, command: Command, repository: Path, tmp_path: Path, **disk: Any) -> BusyChain:
    made = BusyChain(lab, command, repository, tmp_path, [BusyDisk(tmp_path / "vda.qcow2", size="16M", **disk)])
    made.machine.write("vda", "write -P 1 6M 10M")
    return made


@pytest.fixture
def chain(lab: Lab, command: Command, repository: Path, tmp_path: Path) -> BusyChain:
    return busy(lab, command, repository, tmp_path)


@contextmanager
def writes_fail(number: int, *, ending: str) -> Iterator[None]:
    """Every write to the files of nodes whose names end so fails with that errno."""
    real = targets.node

    def node(node_name: str, filename: str, **named: Any) -> targets.BlockdevOptions:
        options = real(node_name, filename, **named)
        if node_name.endswith(ending):
            failure = {"event": "none", "iotype": "write", "errno": number}
            options["file"] = {"driver": "blkdebug", "image": options["file"], "inject-error": [failure]}
        return options

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "node", node)
        yield


def expect_untouched(chain: BusyChain, before: dict[str, Any]) -> None:
    """Nothing of the backup is left, and the guest noticed nothing."""
    assert chain.machine.state() == before
    assert [path.name for path in chain.repository.iterdir()] == ["vbackup.json"]
    chain.is_well()


def expect_area_named(failed: Outcome, area: Path) -> None:
    assert f"could not save in the fleecing area {area} {LOST}" in failed.stderr
    assert "no write of the guest was lost" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1, failed.stderr


@contextmanager
def overwriting(chain: BusyChain, *, after: Callable[[], None] = lambda: None) -> Iterator[None]:
    """When the copies have started, call ``after``; then the guest overwrites the end of its disk, copied last.

    What it overwrites by itself may have been copied before, if the machine is slow.
    """
    sent = []

    def send(monitor: Any, transaction: Any) -> None:
        transactions.send(monitor, transaction)
        sent.append(transaction)
        if len(sent) == 2:
            after()
            chain.machine.write("vda", f"write -P {len(sent)} 15M 64k")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vbackup.operations.backup.send", send)
        yield


def test_no_error_of_the_fleecing_area_reaches_the_guest(chain: BusyChain, area: Path) -> None:
    before = chain.machine.state()
    for number in (errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ENOTCONN, errno.ESTALE, errno.ENOSPC):
        with writes_fail(number, ending="-aside"), overwriting(chain):
            failed = chain.run("--fleecing", area, "--speed", "4M", status=7)
        expect_area_named(failed, area)
        expect_untouched(chain, before)
    assert levels(chain.backup("--fleecing", area)) == {"vda": "full"}
    chain.is_well()


def test_limit_on_the_size_of_a_file_in_the_fleecing_area(
    lab: Lab, command: Command, repository: Path, area: Path, tmp_path: Path
) -> None:
    """The image there outgrows the limit with the last of what is overwritten; the compressed target does not."""
    disk = DiskSpec(tmp_path / "vdb.raw", dev="vdb", format="raw", size="8M")
    chain = BusyChain(lab, command, repository, tmp_path, [BusyDisk(tmp_path / "vda.qcow2", size="6M"), disk])
    chain.machine.write("vdb", "write -P 1 0 8M")
    before = chain.machine.state()
    pid = next((lab.root / "run").glob("**/*bases.pid")).read_text().strip()
    limit = ["prlimit", "--pid", pid, f"--fsize={8 << 20}:unlimited"]

    def overwrite(_monitor: object) -> None:
        subprocess.run(limit, check=True)
        chain.machine.write("vdb", "write -P 2 0 8M")

    references = References(tmp_path / "references", after_transaction=overwrite)
    options = ("--fleecing", area, "--speed", "2M", "--compress", "zstd", "--disk", "vdb")
    with pytest.MonkeyPatch.context() as patch, references.taken(patch):
        failed = chain.run(*options, status=7)
    expect_area_named(failed, area)
    for name in references._jobs:  # its target outgrew the limit too, unless it was quicker than the guest

        def status(job_id: str = name) -> str:
            [found] = [job["status"] for job in chain.machine.execute("query-jobs") if job["id"] == job_id]
            return str(found)

        wait_for(lambda: status() in ("concluded", "pending"), "the end of the reference")
        if status() == "pending":
            chain.machine.execute("job-cancel", id=name)
            wait_for(lambda: status() == "concluded", "the end of the reference")
        chain.machine.execute("job-dismiss", id=name)
        chain.machine.execute("blockdev-del", node_name=name)
    subprocess.run([*limit[:3], "--fsize=unlimited"], check=True)
    expect_untouched(chain, before)


def test_storage_of_the_fleecing_area_is_lost(chain: BusyChain, tmp_path: Path) -> None:
    directory = tmp_path / "storage"
    directory.mkdir()
    storage = Ext4(directory, size_mib=64)
    storage.mount()
    try:
        before = chain.machine.state()
        with overwriting(chain, after=storage.lose):
            failed = chain.run("--fleecing", storage.path, "--speed", "4M", status=7)
        assert str(storage.path) in failed.stderr
        assert os.strerror(errno.EIO) in failed.stderr
        expect_untouched(chain, before)
    finally:
        storage.unmount()


@pytest.mark.parametrize(
    ("policy", "stopping", "seen", "says"),
    [
        ("", {errno.ENOSPC}, [errno.EDQUOT, errno.EFBIG, errno.EIO], b"E"),
        ("error_policy='stop'", {errno.ENOSPC, errno.EDQUOT, errno.EIO}, [], b"E"),
        ("error_policy='report'", set(), [errno.ENOSPC], b"E"),
        # Its write is reported as done, and it reads what was there before.
        ("error_policy='ignore'", set(), [errno.ENOSPC], b"X"),
    ],
    ids=["default", "stop", "report", "ignore"],
)
def test_error_of_the_repository_without_fleecing(
    lab: Lab,
    command: Command,
    repository: Path,
    tmp_path: Path,
    policy: str,
    stopping: set[int],
    seen: list[int],
    says: bytes,
) -> None:
    """What vbackup(1) says: the guest's own write fails, and QEMU does what the disk's error_policy says."""
    chain = busy(lab, command, repository, tmp_path, driver=policy)
    before = chain.machine.state()
    for number in (*stopping, *seen):
        errors = chain.said().count(says)
        # On a slow machine the job fails before the guest has overwritten anything; then there is nothing to see.
        for _ in range(20):
            with writes_fail(number, ending="-vda"):
                failed = chain.run("--speed", "64K", status=7)
            assert chain.machine.state() == before
            chain.works()
            if "The guest was stopped" in failed.stderr or chain.said().count(says) > errors:
                break
        assert ("The guest was stopped" in failed.stderr) == (number in stopping), failed.stderr
        assert (chain.said().count(says) > errors) == (number in seen), failed.stderr
