"""The contenders: each makes a backup of the same domain with its own means, and what it made can be looked at.

A contender's full and incremental are measured; making ready (an empty repository) and looking are not.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import libvirt

from tests.bench.guests import Guest, create
from tests.bench.isolation import RUN, URI
from tests.bench.measuring import FailedError, Meter
from vbackup.repository.repository import Repository

#: The command as an installed one runs: in a separate Python.
VBACKUP = (sys.executable, "-m", "vbackup")

Images = dict[str, tuple[Path, str]]  #: by dev: an image that holds what was backed up, and its format


@dataclass(frozen=True)
class Job:
    """One backup to be made."""

    guest: Guest
    output: Path  #: what is below it counts as written
    scratch: Path  #: beside it; does not count
    options: tuple[str, ...] = ()  #: of vbackup


Backup = Callable[[Job, Meter], None]


def _nothing(_job: Job) -> None:
    """Make nothing ready."""


@dataclass(frozen=True)
class Contender:
    """One way to back up."""

    name: str
    program: str  #: that must be installed
    package: str  #: Debian's, that has it
    full: Backup
    images: Callable[[Job], Images]  #: of the newest backup
    incremental: Backup | None = None
    ready: Callable[[Job], None] = field(default=_nothing)

    def missing(self) -> str | None:
        """Why it cannot take part; None if it can."""
        return None if shutil.which(self.program) else f"{self.program} is not installed (Debian: {self.package})"


def check(contender: Contender, job: Job) -> str:
    """Whether what it made holds the same bytes as the disks, in a word or two. The guest must not write meanwhile."""
    try:
        images = contender.images(job)
    except (FailedError, OSError) as err:
        return f"cannot be restored: {err}"
    for dev, path in job.guest.disks.items():
        made, image_format = images[dev]
        argv = ["qemu-img", "compare", "-U", "-f", "qcow2", "-F", image_format, str(path), str(made)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{dev} differs: {(done.stdout + done.stderr).strip().splitlines()[0]}"
    return "identical"


def _images_beside(suffix: str, image_format: str) -> Callable[[Job], Images]:
    return lambda job: {dev: (job.output / f"{dev}.{suffix}", image_format) for dev in job.guest.disks}


# what the machine can do


def _cp(job: Job, meter: Meter) -> None:
    for dev, path in job.guest.disks.items():
        meter.run("cp", "--sparse=auto", path, job.output / f"{dev}.qcow2")


def _convert(job: Job, meter: Meter) -> None:
    for dev, path in job.guest.disks.items():
        options = ("-U", "-f", "qcow2", "-O", "qcow2", "-W", "-m", "8")
        meter.run("qemu-img", "convert", *options, path, job.output / f"{dev}.qcow2")


# libvirt's own


def _virsh_push(job: Job, meter: Meter) -> None:
    disks = "".join(
        f"<disk name='{dev}' backup='yes' type='file'><target file='{job.output / dev}.qcow2'/><driver type='qcow2'/>"
        "</disk>"
        for dev in job.guest.disks
    )
    xml = job.scratch / "push.xml"
    xml.write_text(f"<domainbackup><disks>{disks}</disks></domainbackup>")
    with _job_end(job.guest) as wait:
        meter.run("virsh", "-q", "-c", URI, "backup-begin", job.guest.name, xml)
        wait()


@contextmanager
def _job_end(guest: Guest) -> Iterator[Callable[[], None]]:
    """What waits until libvirt says that the domain's backup job has ended."""
    ended = threading.Event()

    def on_end(*_arguments: object) -> None:
        ended.set()

    connection = guest.domain.connect()
    registered = connection.domainEventRegisterAny(
        guest.domain, libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, on_end, None
    )

    def wait() -> None:
        ended.wait()
        said = guest.domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
        if not said.get("success", True):
            raise FailedError(f"virsh backup-begin: {said}")

    try:
        yield wait
    finally:
        connection.domainEventDeregisterAny(registered)


def _nbdcopy_pull(job: Job, meter: Meter) -> None:
    socket = RUN / "bench-pull.sock"
    disks = "".join(
        f"<disk name='{dev}' backup='yes' type='file'><scratch file='{job.scratch / dev}.scratch'/></disk>"
        for dev in job.guest.disks
    )
    xml = job.scratch / "pull.xml"
    xml.write_text(
        f"<domainbackup mode='pull'><server transport='unix' socket='{socket}'/><disks>{disks}</disks></domainbackup>"
    )
    meter.run("virsh", "-q", "-c", URI, "backup-begin", job.guest.name, xml)
    try:
        for dev in job.guest.disks:
            meter.run("nbdcopy", f"nbd+unix:///{dev}?socket={socket}", job.output / f"{dev}.raw")
    finally:
        meter.run("virsh", "-q", "-c", URI, "domjobabort", job.guest.name)


# virtnbdbackup


def _virtnbdbackup(level: str, *more: str) -> Backup:
    def run(job: Job, meter: Meter) -> None:
        options = ("-U", URI, "-n", "-l", level, *more)
        meter.run("virtnbdbackup", *options, "-d", job.guest.name, "-o", job.output)

    return run


def _virtnbdbackup_images(job: Job) -> Images:
    restored = job.scratch / "restored"
    shutil.rmtree(restored, ignore_errors=True)
    log = job.scratch / "restore.log"
    Meter(log).run(
        *("virtnbdrestore", "-U", URI, "-n", "-a", "restore", "-i", job.output, "-o", restored),
        *("-L", job.scratch / "virtnbdrestore.log"),
    )
    return {dev: (next(restored.glob(f"*{path.name}")), "qcow2") for dev, path in job.guest.disks.items()}


# qmpbackup


def _qmpbackup(job: Job, meter: Meter) -> None:
    """What qmpbackup (2026-07, not in Debian) sends for a compressed full, in its order and with its options.

    A fleecing image and a copy-before-write filter for each disk, which the device is then put on; a bitmap and a
    compressing job from the filter's snapshot in one transaction; and all of it removed again. Its own start and
    its log are not in the figure, which is in its favour.
    """
    qmp = job.guest.qmp
    disks = {dev: (job.guest.node_name(dev), job.guest.qdev(dev)) for dev in job.guest.disks}
    for dev, (node, qdev) in disks.items():
        size = str(_virtual_size_bytes(job.guest, dev))
        for node_name, path in ((dev, job.output / f"{dev}.qcow2"), (f"{dev}-fleece", job.scratch / f"{dev}.fleece")):
            path.unlink(missing_ok=True)
            meter.run("qemu-img", "create", "-q", "-f", "qcow2", path, "-o", f"size={size}")
            file = {"driver": "file", "filename": str(path)}
            qmp.execute("blockdev-add", driver="qcow2", node_name=f"qmpbackup-{node_name}", file=file)
        qmp.execute(
            "blockdev-add",
            driver="copy-before-write",
            node_name=f"qmpbackup-{dev}-cbw",
            file=node,
            target=f"qmpbackup-{dev}-fleece",
            **{"on-cbw-error": "break-snapshot", "cbw-timeout": 45},
        )
        qmp.execute("qom-set", path=qdev, property="drive", value=f"qmpbackup-{dev}-cbw")
        snapshot = {"driver": "snapshot-access", "file": f"qmpbackup-{dev}-cbw"}
        qmp.execute("blockdev-add", node_name=f"qmpbackup-{dev}-snap", **snapshot)
    actions = []
    for dev, (node, _) in disks.items():
        has_it = "qmpbackup-bench" in _bitmaps(job.guest, node)
        bitmap = {"node": node, "name": "qmpbackup-bench", **({} if has_it else {"persistent": True})}
        backup = {"device": f"qmpbackup-{dev}-snap", "target": f"qmpbackup-{dev}", "sync": "full", "compress": True}
        # Only so that its end can be waited for and its error be read.
        backup |= {"job-id": f"qmpbackup.{dev}", "auto-dismiss": False}
        actions += [
            {"type": "block-dirty-bitmap-clear" if has_it else "block-dirty-bitmap-add", "data": bitmap},
            {"type": "blockdev-backup", "data": backup},
        ]
    try:
        qmp.execute("transaction", actions=actions)
        _finish(job.guest, {f"qmpbackup.{dev}" for dev in disks})
    finally:
        for dev, (node, qdev) in disks.items():
            qmp.execute("blockdev-del", node_name=f"qmpbackup-{dev}-snap")
            qmp.execute("qom-set", path=qdev, property="drive", value=node)
            for name in (f"{dev}-cbw", f"{dev}-fleece", dev):
                qmp.execute("blockdev-del", node_name=f"qmpbackup-{name}")


def _virtual_size_bytes(guest: Guest, dev: str) -> int:
    blocks = guest.qmp.execute("query-block")
    size: int = next(one for one in blocks if one.get("qdev") == guest.qdev(dev))["inserted"]["image"]["virtual-size"]
    return size


def _bitmaps(guest: Guest, node_name: str) -> set[str]:
    nodes = guest.qmp.execute("query-named-block-nodes", flat=True)
    node = next(one for one in nodes if one["node-name"] == node_name)
    return {bitmap.get("name", "") for bitmap in node.get("dirty-bitmaps", [])}


def _finish(guest: Guest, ids: set[str]) -> None:
    guest.qmp.wait_for_jobs(ids)
    errors = [f"{job['id']}: {job['error']}" for job in guest.qmp.execute("query-jobs") if "error" in job]
    for job_id in ids:
        guest.qmp.execute("job-dismiss", id=job_id)
    if errors:
        raise FailedError("; ".join(errors))


# QEMU's job and nothing else


def _job_alone_ready(job: Job) -> None:
    """A separate bitmap on each disk."""
    for dev in job.guest.disks:
        node = job.guest.node_name(dev)
        if "bench" not in _bitmaps(job.guest, node):
            job.guest.qmp.execute("block-dirty-bitmap-add", node=node, name="bench", persistent=True)


def _job_alone(job: Job, _meter: Meter) -> None:
    qmp = job.guest.qmp
    actions = []
    for dev in job.guest.disks:
        path = create(job.output / f"{dev}.qcow2", str(_virtual_size_bytes(job.guest, dev)))
        qmp.execute(
            "blockdev-add", driver="qcow2", node_name=f"bench-{dev}", file={"driver": "file", "filename": str(path)}
        )
        backup = {
            "job-id": f"bench-{dev}",
            "device": job.guest.node_name(dev),
            "target": f"bench-{dev}",
            "sync": "incremental",
            "bitmap": "bench",
            "auto-dismiss": False,
        }
        actions.append({"type": "blockdev-backup", "data": backup})
    qmp.execute("transaction", actions=actions)
    _finish(job.guest, {f"bench-{dev}" for dev in job.guest.disks})
    for dev in job.guest.disks:
        qmp.execute("blockdev-del", node_name=f"bench-{dev}")


# vbackup


def _vbackup_ready(job: Job) -> None:
    if not job.output.joinpath("vbackup.json").exists():
        Repository.create(job.output)


def _vbackup(level: str) -> Backup:
    def run(job: Job, meter: Meter) -> None:
        options = ("-c", URI, "-r", job.output, "-q", "--level", level, *job.options)
        meter.run(*VBACKUP, "backup", job.guest.name, *options)

    return run


def newest_backup(repository: Path) -> Path:
    """The directory of the newest backup in a repository of one domain."""
    return max(repository.glob("*/*/manifest.json"), key=lambda path: path.stat().st_mtime_ns).parent


def _vbackup_images(job: Job) -> Images:
    newest = newest_backup(job.output)
    return {dev: (newest / f"{dev}.qcow2", "qcow2") for dev in job.guest.disks}


_QCOW2 = _images_beside("qcow2", "qcow2")

CP = Contender("cp", "cp", "coreutils", _cp, _QCOW2)
CONVERT = Contender("qemu-img convert -W -m 8", "qemu-img", "qemu-utils", _convert, _QCOW2)
VIRSH = Contender("virsh backup-begin (push)", "virsh", "libvirt-clients", _virsh_push, _QCOW2)
NBDCOPY = Contender("nbdcopy (pull)", "nbdcopy", "libnbd-bin", _nbdcopy_pull, _images_beside("raw", "raw"))
VIRTNBDBACKUP = Contender(
    "virtnbdbackup",
    "virtnbdbackup",
    "virtnbdbackup",
    _virtnbdbackup("full"),
    _virtnbdbackup_images,
    incremental=_virtnbdbackup("inc"),
)
VIRTNBDBACKUP_Z = Contender(
    "virtnbdbackup -z", "virtnbdbackup", "virtnbdbackup", _virtnbdbackup("full", "-z"), _virtnbdbackup_images
)
QMPBACKUP = Contender("qmpbackup's transaction (zlib)", "qemu-img", "qemu-utils", _qmpbackup, _QCOW2)
JOB_ALONE = Contender(
    "QEMU's job alone", "qemu-img", "qemu-utils", _job_alone, _QCOW2, incremental=_job_alone, ready=_job_alone_ready
)
OURS = Contender(
    "vbackup",
    sys.executable,
    "",
    _vbackup("full"),
    _vbackup_images,
    incremental=_vbackup("incremental"),
    ready=_vbackup_ready,
)
