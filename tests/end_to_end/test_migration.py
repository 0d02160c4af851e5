"""A domain that moves to another host while it runs: two libvirtds with a host UUID each, on one storage.

Each has its own /run and /var/lib/libvirt, in a mount namespace, so that nothing of the system's is touched.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libvirt
import pytest

from tests.daemon import end_domains, wait_for
from tests.end_to_end.chains import END_BYTES, levels, reasons
from tests.end_to_end.test_daemon import Running
from tests.lab import DiskSpec, Machine, domain_xml, qemu_img_info
from vbackup import errors
from vbackup.domain.host import Host

if TYPE_CHECKING:
    from tests.conftest import Command

SIZE_BYTES = 8 << 20
NAME, UUID = "moving", "44444444-4444-5555-6666-777777777777"
#: Both daemons see the images as they are: neither gives them to another user, nor has a control group that the
#: other one's QEMU would be in.
QEMU_CONF = """\
dynamic_ownership = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""
CONF = """\
unix_sock_dir = "{directory}"
auth_unix_rw = "none"
listen_tls = 0
host_uuid = "{uuid}"
log_outputs = "3:file:{directory}/libvirtd.log"
"""
#: Where /dev/kvm is there but of no use, it is covered: see tests.daemon.
IN_NAMESPACE = """\
for directory in /run /var/lib/libvirt /var/log/libvirt; do mount -t tmpfs -o mode=755 none "$directory" || exit 1; done
mkdir /run/libvirt /var/lib/libvirt/qemu /var/log/libvirt/qemu
mount --bind "$0" /etc/libvirt/qemu.conf && if [ -e /dev/kvm ]; then mount --bind "$0" /dev/kvm; fi && exec "$@"
"""


@contextmanager
def a_host(directory: Path) -> Iterator[str]:
    """A separate libvirtd; gives its URI."""
    directory.mkdir()
    (directory / "qemu.conf").write_text(QEMU_CONF)
    (directory / "qemu.conf").chmod(0o600)
    (directory / "libvirtd.conf").write_text(CONF.format(directory=directory, uuid=uuid.uuid4()))
    argv = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", IN_NAMESPACE, directory / "qemu.conf"]
    argv += ["libvirtd", "--config", directory / "libvirtd.conf", "--pid-file", directory / "pid"]
    environment = {name: value for name, value in os.environ.items() if name != "LIBVIRT_LOG_OUTPUTS"}
    uri = f"qemu+unix:///system?socket={directory}/libvirt-sock"

    def answers() -> bool:
        try:
            libvirt.open(uri).close()
        except libvirt.libvirtError:
            return False
        return True

    with subprocess.Popen(argv, stderr=subprocess.DEVNULL, env=environment) as process:
        try:
            wait_for(lambda: process.poll() is not None or answers(), "libvirtd's start")
            assert process.poll() is None, "libvirtd did not start"
            yield uri
        finally:
            process.terminate()


def waiting() -> list[int]:
    """The processes of those QEMUs that wait for a migration."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            argv = path.read_bytes().split(b"\0")
            if b"qemu-system" in argv[0] and b"-incoming" in argv:
                pids.append(int(path.parent.name))
    return pids


@dataclass
class Move:
    """A domain with a qcow2 and a raw disk, and two hosts for it."""

    uris: dict[str, str]
    directory: Path
    command: Command
    repository: Path
    disks: dict[str, bytearray] = field(default_factory=lambda: {dev: bytearray(SIZE_BYTES) for dev in ("vda", "vdb")})
    at: str = "here"
    hosts: dict[str, Host] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        return self.uris[self.at]

    @property
    def machine(self) -> Machine:
        """Where it runs now."""
        return Machine(self.hosts[self.at].domain(NAME))

    def start(self) -> None:
        self.hosts = {name: Host(uri) for name, uri in self.uris.items()}
        specs = [
            DiskSpec(self.directory / "vda.qcow2", size="8M"),
            DiskSpec(self.directory / "vdb.raw", dev="vdb", format="raw", size="8M"),
        ]
        for spec in specs:
            spec.create()
            spec.path.chmod(0o666)
        xml = domain_xml(NAME, [spec.xml() for spec in specs], top=f"<uuid>{UUID}</uuid>")
        self.hosts["here"].connection.createXML(xml)
        self.write(1, 0, SIZE_BYTES)

    def close(self) -> None:
        with ExitStack() as stack:
            for host in self.hosts.values():
                stack.callback(host.close)
                stack.callback(end_domains, host.connection)

    def write(self, pattern: int, offset: int, length: int = 65536) -> None:
        """To both disks."""
        machine = self.machine
        for dev, data in self.disks.items():
            machine.write(dev, f"write -P {pattern} {offset} {length}")
            data[offset : offset + length] = bytes([pattern]) * length

    @property
    def elsewhere(self) -> str:
        """The host where it is not."""
        return "there" if self.at == "here" else "here"

    def migrate(self, *options: str, meanwhile: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
        """To the other host; ``--unsafe`` as /tmp is none of the filesystems that libvirt knows to be shared.

        ``meanwhile`` is called while the QEMU that it comes to is stopped.
        """
        to = self.elsewhere
        # Slowly, if something is to happen meanwhile: in the last phase QEMU would answer nobody while it is held up.
        options = options if meanwhile is None else ("--bandwidth", "1", *options)
        argv = ["virsh", "-c", self.uri, "migrate", "--live", "--p2p", "--unsafe", *options, NAME, self.uris[to]]
        argv.append(f"unix://{self.directory}/migration")
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            if meanwhile is not None:
                with self._held_up(process):
                    meanwhile()
            out, err = process.communicate(timeout=120)
        done = subprocess.CompletedProcess(argv, process.returncode, out, err)
        if done.returncode == 0:
            self.at = to
        return done

    @contextmanager
    def _held_up(self, process: subprocess.Popen[str]) -> Iterator[None]:
        """Stop the QEMU that waits for the migration, so that it is certainly under way."""
        arriving = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION)

        def state() -> tuple[int, ...]:
            try:
                return tuple(self.hosts[self.elsewhere].connection.lookupByName(NAME).state())
            except libvirt.libvirtError:
                return ()

        def is_under_way() -> bool:
            # Where it leaves, libvirt tells of the migration only once QEMU has begun it.
            stats = self.hosts[self.at].connection.lookupByName(NAME).jobStats()
            leaving = stats.get(libvirt.VIR_DOMAIN_JOB_OPERATION) == libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT
            return leaving and state() == arriving and bool(waiting())

        wait_for(lambda: process.poll() is not None or is_under_way(), "the migration")
        (pid,) = waiting()
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def backup(self) -> dict[str, Any]:
        """A backup of where it is now, checked."""
        return self.check(
            self.command("-c", self.uri, "-q", "backup", NAME, "-r", self.repository, "--json").document, self.moment()
        )

    def moment(self) -> dict[str, bytes]:
        return {dev: bytes(data) for dev, data in self.disks.items()}

    def check(self, done: dict[str, Any], moment: dict[str, bytes]) -> dict[str, Any]:
        """A restore is what was on the disks at that moment; nothing is left in QEMU."""
        output = self.directory / "out"
        options = ("--backup", done["id"], "--output", output, "--format", "raw")
        self.command("-q", "restore", NAME, "-r", self.repository, *options)
        assert {dev: (output / f"{dev}.raw").read_bytes() for dev in moment} == moment
        shutil.rmtree(output)
        state = self.machine.state()
        assert (state["jobs"], state["fdsets"]) == ([], [])
        assert not [name for name in state["nodes"] if not name.startswith("libvirt-")]
        return done


@pytest.fixture
def move(command: Command, repository: Path) -> Iterator[Move]:
    if os.geteuid() != 0 or shutil.which("libvirtd") is None:
        pytest.skip("two libvirtds need root, and to be installed")
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="vbm-", dir="/tmp"))
        directory.chmod(0o777)  # for the socket of a QEMU that is not root
        stack.callback(shutil.rmtree, directory)
        uris = {name: stack.enter_context(a_host(directory / name)) for name in ("here", "there")}
        made = Move(uris, directory, command, repository)
        stack.callback(made.close)
        made.start()
        yield made


def test_migrated_domain_stays_incremental_where_its_bitmaps_came_along(move: Move) -> None:
    move.backup()
    move.write(2, 1 << 20)

    # While a job has the disks QEMU cannot hand them over: the migration fails, guest and backup go on.
    move.write(3, 0, SIZE_BYTES)
    moment = move.moment()
    running = Running("-c", move.uri, "-q", "backup", NAME, "-r", move.repository, "--json", "--speed", "1M")
    running.wait_for_progress(move.machine)
    failed = move.migrate()
    assert (failed.returncode, "migration" in failed.stderr) == (1, True), failed
    assert running.process.poll() is None, "the backup was too quick for this test"
    assert move.machine.handle.domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    move.write(4, 7 << 20)
    for job in move.machine.execute("query-jobs"):
        move.machine.execute("block-job-set-speed", device=job["id"], speed=0)
    status, out, err = running.wait()
    assert status == 0, err
    assert set(levels(move.check(json.loads(out), moment)).values()) == {"incremental"}

    # Then it moves. Bitmaps that are stored in the image are handed over with it; others end with the old QEMU.
    move.write(5, 2 << 20)
    assert move.migrate().returncode == 0
    assert move.at == "there"
    move.write(6, 3 << 20)
    done = move.backup()
    assert levels(done) == {"vda": "incremental", "vdb": "full"}
    assert [disk["copied_bytes"] for disk in done["disks"]] == [3 * 65536 + END_BYTES, SIZE_BYTES]
    assert "restarted or migrated" in reasons(done)["vdb"]
    move.write(7, 4 << 20)
    assert set(levels(move.backup()).values()) == {"incremental"}


def test_migration_that_is_under_way_is_told_at_both_ends(move: Move) -> None:
    first = move.backup()
    move.write(2, 1 << 20)
    refusals: list[tuple[int, float, str]] = []

    def ask() -> None:
        for host in (move.elsewhere, move.at):
            for arguments in (("backup", NAME, "-r", move.repository), ("bitmap", "list", NAME)):
                begun = time.monotonic()
                said = Running("-c", move.uris[host], "-q", *arguments).wait()
                refusals.append((said[0], time.monotonic() - begun, said[2]))

    done = move.migrate(meanwhile=ask)
    assert done.returncode == 0, done
    assert [status for status, _, _ in refusals] == [8, 8, 8, 8], refusals
    assert max(lasted_s for _, lasted_s, _ in refusals) < 15, refusals  # libvirt waits for its lock for 30 s
    where = ["is being migrated from another host"] * 2 + ["is being migrated to another host"] * 2
    assert all(words in said for words, (_, _, said) in zip(where, refusals)), refusals
    assert [path.name for path in (move.repository / UUID).iterdir() if path.is_dir()] == [first["id"]]
    assert levels(move.backup()) == {"vda": "incremental", "vdb": "full"}


def test_domain_that_arrived_paused_is_not_written_to_before_it_runs(move: Move) -> None:
    move.backup()
    move.write(2, 1 << 20)
    assert move.migrate("--suspend").returncode == 0
    vda = move.directory / "vda.qcow2"
    before = (move.machine.state(), qemu_img_info(vda)["format-specific"]["data"]["bitmaps"])
    # libvirt 9.0 and 12.8 leave QEMU's nodes inactive, libvirt 11.3 activates them.
    if not move.machine.is_active():
        for arguments in (("backup", NAME), ("recover", NAME), ("forget", NAME)):
            refused = move.command("-c", move.uri, "-q", *arguments, "-r", move.repository, status=8)
            assert f"Domain {NAME} does not have its images to itself: it arrived paused" in refused.stderr
        for arguments in (("bitmap", "list", NAME), ("bitmap", "add", NAME, "x", "--persistent")):
            refused = move.command("-c", move.uri, "-q", *arguments, status=8)
            assert refused.stdout == ""
            assert errors.command(f"virsh resume {NAME}", move.uri) in refused.stderr
        assert (move.machine.state(), qemu_img_info(vda)["format-specific"]["data"]["bitmaps"]) == before
    else:
        assert levels(move.backup()) == {"vda": "incremental", "vdb": "full"}

    move.machine.handle.resume()
    assert move.machine.execute("query-status")["status"] == "running"
    move.write(3, 2 << 20)
    move.machine.check_content("vda", f"-P 3 {2 << 20} 64k", f"-P 2 {1 << 20} 64k")
    assert levels(move.backup())["vda"] == "incremental"


def test_domain_with_a_pull_session_stays_and_moves_when_it_is_over(move: Move, sockets: Path) -> None:
    def session(*words: str | Path) -> dict[str, Any]:
        return move.command("-c", move.uri, "-q", "session", *words, "--json").document

    begin = ("begin", NAME, "--tracker", "acme", "--scratch", sockets)
    first = session(*begin)
    moment = move.moment()
    move.write(2, 1 << 20)
    failed = move.migrate()
    assert (failed.returncode, "migration" in failed.stderr) == (1, True), failed
    assert move.machine.handle.domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    move.write(3, 2 << 20)
    for disk in first["disks"]:
        copy = sockets / "copy"
        subprocess.run(["nbdcopy", disk["uri"], copy], check=True)
        assert copy.read_bytes() == moment[disk["dev"]]
    assert session("commit", first["id"])["state"] == "committed"
    assert move.migrate().returncode == 0
    move.write(4, 3 << 20)
    second = session(*begin)
    assert {disk["dev"]: disk["level"] for disk in second["disks"]} == {"vda": "incremental", "vdb": "full"}
    assert second["disks"][0]["dirty_bytes"] == 3 * 65536 + END_BYTES
    session("abort", second["id"])
    state = move.machine.state()
    assert (state["jobs"], state["fdsets"]) == ([], [])
