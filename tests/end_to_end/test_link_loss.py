"""A link that dies while QEMU copies through it: the guest goes on, and nothing of the backup stays in its QEMU.

Below the engine: the nodes and jobs are made by hand, as a backup makes them.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon import wait_for
from tests.hosts import Hypervisor
from tests.lab import DiskSpec, Machine, domain_xml
from vbackup.errors import LinkLostError, RemoteError
from vbackup.remote import address, connection
from vbackup.remote.link import Link

PREFIX = "vbackup-0123456789ab-"
DISK_BYTES = 64 << 20


@pytest.fixture
def machine(hypervisor: Hypervisor) -> Machine:
    spec = DiskSpec(hypervisor.images / "vda.qcow2")
    spec.create()
    machine = hypervisor.start(domain_xml("web", [spec.xml()]))
    machine.write("vda", "write -P 1 0 16M", "write -z 20M 1M")
    return machine


@pytest.fixture
def link(hypervisor: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    """A link for which seconds of silence are a loss."""
    limits = {"SILENCE_S": 2.0, "THAW_SILENCE_S": 1.0, "REPLY_SILENCE_S": 4.0, "GREETING_S": 2.0, "GRACE_S": 0.5}
    for name, value in {**limits, "BEAT_S": 0.3}.items():
        monkeypatch.setattr(connection, name, value)
    found = address.parse(hypervisor.uri)
    assert found is not None
    with Link(found) as link:
        yield link


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Path]:
    """An NBD server on the backup host with an empty image, ``target.qcow2``; its socket's path is long and odd."""
    image = tmp_path / "target.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, str(DISK_BYTES)], check=True)
    directory = Path("/tmp", f"vbackup: a \"path'{os.getpid()}")
    directory.mkdir()
    argv = [
        "qemu-nbd",
        "--persistent",
        "--shared=8",
        "-f",
        "qcow2",
        "-x",
        "vda",
        "-k",
        str(directory / "sock"),
        str(image),
    ]
    with subprocess.Popen(argv) as process:
        wait_for((directory / "sock").exists, "the start of qemu-nbd")
        yield directory / "sock"
        process.terminate()
    directory.rmdir()


def open_target(link: Link, machine: Machine, server: Path) -> None:
    link.guard(machine.handle.uuid, jobs=f"{PREFIX}20260101T000000Z-full-", nodes=PREFIX)
    link.pass_nbd(machine.handle.uuid, "vda-link", link.forward(server))
    place = {"type": "fd", "str": "vda-link"}
    options = {"export": "vda", "open_timeout": 5}
    machine.execute("blockdev-add", driver="nbd", node_name=f"{PREFIX}vda", server=place, **options)


def start_job(machine: Machine, *, speed: int = 0) -> str:
    """Start a copy of the disk that waits before it ends, as a backup's does; returns its id."""
    [node] = [one["inserted"]["node-name"] for one in machine.execute("query-block") if one.get("inserted")]
    job = f"{PREFIX}20260101T000000Z-full-vda"
    ends_when_told = {"auto_finalize": False, "auto_dismiss": False}
    machine.execute(
        "blockdev-backup", job_id=job, device=node, target=f"{PREFIX}vda", sync="full", speed=speed, **ends_when_told
    )
    return job


def status_of(machine: Machine) -> list[str]:
    return [job["status"] for job in machine.execute("query-jobs")]


def test_qemu_copies_through_the_link(
    hypervisor: Hypervisor, machine: Machine, link: Link, server: Path, tmp_path: Path
) -> None:
    before = machine.state()
    open_target(link, machine, server)
    job = start_job(machine)
    wait_for(lambda: status_of(machine) == ["pending"], "the copy")
    machine.execute("job-finalize", id=job)
    wait_for(lambda: status_of(machine) == ["concluded"], "the end")
    machine.execute("job-dismiss", id=job)
    machine.execute("blockdev-del", node_name=f"{PREFIX}vda")
    link.unguard(machine.handle.uuid)
    assert machine.state() == before
    machine.destroy()
    argv = ["qemu-img", "compare", "-U", tmp_path / "target.qcow2", hypervisor.images / "vda.qcow2"]
    subprocess.run(argv, check=True)


def test_fleecing_image_is_made_there_without_a_name(hypervisor: Hypervisor, machine: Machine, link: Link) -> None:
    uuid = machine.handle.uuid
    link.guard(uuid, jobs=PREFIX, nodes=PREFIX)
    fdset = link.pass_file(uuid, f"{PREFIX}0-aside", str(hypervisor.images), DISK_BYTES)
    file = {"driver": "file", "filename": f"/dev/fdset/{fdset}"}
    machine.execute("blockdev-add", driver="qcow2", node_name=f"{PREFIX}0-aside", file=file)
    assert link.names_in(str(hypervisor.images)) == ["vda.qcow2"]
    with pytest.raises(RemoteError, match="/nothing: No such file or directory"):
        link.pass_file(uuid, f"{PREFIX}1-aside", "/nothing", DISK_BYTES)
    link.close()
    wait_for(lambda: not [name for name in machine.state()["nodes"] if name.startswith(PREFIX)], "the helper's work")
    wait_for(lambda: machine.state()["fdsets"] == [], "the end of the descriptors")


def test_silent_server_does_not_reach_qemu(machine: Machine, link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = Path(f"/tmp/vbackup-silent-{os.getpid()}")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory))
        listener.listen()
        remote = link.forward(directory)
        begun = time.monotonic()
        with pytest.raises(RemoteError, match="did not greet within 2 s"):
            link.pass_nbd(machine.handle.uuid, "silent", remote)
        assert time.monotonic() - begun < 6
    directory.unlink()
    with pytest.raises(RemoteError, match="has closed the connection"):
        link.pass_nbd(machine.handle.uuid, "gone", remote)


def kill_ssh(_hypervisor: Hypervisor, link: Link) -> None:
    assert link._connection is not None
    link._connection._process.kill()


def pull_cable(hypervisor: Hypervisor, _link: Link) -> None:
    hypervisor.pull_cable()


def kill_helper(hypervisor: Hypervisor, _link: Link) -> None:
    assert hypervisor.kill("zlib.decompress") >= 1


def stop_vbackup(_hypervisor: Hypervisor, link: Link) -> None:
    """It lives, and does not get to run: no beat, and ssh goes on."""
    assert link._connection is not None
    link._connection._out = _Nowhere()  # type: ignore[assignment]


class _Nowhere(list[bytes]):
    """Takes lines that nobody sends."""

    def __bool__(self) -> bool:
        return False


@pytest.mark.parametrize("lose", [kill_ssh, pull_cable, stop_vbackup])
def test_loss_of_the_link(
    machine: Machine, hypervisor: Hypervisor, link: Link, server: Path, lose: Callable[[Hypervisor, Link], None]
) -> None:
    before = machine.state()
    open_target(link, machine, server)
    start_job(machine, speed=1 << 20)
    lose(hypervisor, link)
    begun = time.monotonic()
    machine.write("vda", "write -P 2 8M 64k")  # has to be copied first, and so waits for the link
    waited_s = time.monotonic() - begun
    assert waited_s < 6, f"a write of the guest waited for {waited_s:.1f} s"
    wait_for(lambda: machine.state() == before, "the helper's work", timeout_s=15)
    assert machine.execute("query-status")["running"]
    # That write may have failed, as QEMU has it for a job without a fleecing area; from now on all succeed.
    machine.write("vda", "write -P 3 8M 64k")
    machine.check_content("vda", "-P 3 8M 64k", "-P 1 9M 1M")
    with pytest.raises(LinkLostError, match="root@hv1"):
        link.run(["true"])
    if lose is not kill_ssh:  # which leaves the helper time to see it
        wait_for(lambda: not hypervisor.processes("zlib.decompress"), "the helper's end")
    hypervisor.plug_cable()
    again = address.parse(hypervisor.uri)
    assert again is not None
    with Link(again) as next_link:
        open_target(next_link, machine, server)
        assert start_job(machine)
        machine.execute("job-cancel", id=machine.execute("query-jobs")[0]["id"])
        wait_for(lambda: status_of(machine) == ["concluded"], "the end")


def test_user_without_privileges_ends_the_own_session(hypervisor: Hypervisor, server: Path, link: Link) -> None:
    """What sshd runs for the user is the user's, and can be ended: nothing here needs root but libvirt."""
    passwd = hypervisor.directory / "passwd"
    passwd.write_text(f"{Path('/etc/passwd').read_text()}operator1:x:4321:4321::/tmp:/bin/sh\n")
    hypervisor.run("mount", "--bind", passwd, "/etc/passwd")
    try:
        found = address.parse(hypervisor.uri.replace("root@", "operator1@"))
        assert found is not None
        with Link(found) as own:
            assert own.run(["id", "-u"]) == b"4321\n"
            remote = own.forward(server)
            facts = own.stat(remote)
            assert (facts["uid"], facts["mode"] & 0o777) == (4321, 0o600)
            directory = own.directory()
            assert own.stat(directory)["mode"] & 0o777 == 0o700
            assert own._connection is not None
            own._connection._out = _Nowhere()  # type: ignore[assignment]
            wait_for(lambda: own.is_lost, "the end of the session", timeout_s=10)
        wait_for(lambda: not Path(directory).exists(), "the helper's work")  # in /tmp, which both hosts have
        assert not link.is_lost
        shutil.rmtree(Path(directory).parent)
    finally:
        hypervisor.run("umount", "/etc/passwd")
