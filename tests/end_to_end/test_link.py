"""The link to a hypervisor over a real sshd: sockets, files and descriptors through it, and its end in all ways."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.daemon import wait_for
from tests.hosts import Hypervisor
from tests.lab import DiskSpec, qemu_img_info
from vbackup.errors import (
    ForwardingError,
    HelperError,
    LinkLostError,
    RemoteError,
    SshError,
    StorageDaemonGoneError,
    UnsuitableError,
)
from vbackup.qemu.storage_daemon import PROGRAM, StorageDaemon
from vbackup.remote import address
from vbackup.remote import daemon as remote_daemon
from vbackup.remote.link import Link
from vbackup.report import Silent


@contextmanager
def linked(uri: str) -> Iterator[Link]:
    found = address.parse(uri)
    assert found is not None
    with Link(found) as link:
        yield link


def test_files_and_programs(hypervisor: Hypervisor, tmp_path: Path) -> None:
    path = hypervisor.images / "file"
    content = bytes(range(256)) * 3000
    with linked(hypervisor.uri) as link:
        assert link.hello["host"] == "hv1"
        link.write_file(str(path), [content[:100], content[100:]])
        assert b"".join(link.read_file(str(path))) == content
        assert link.stat(str(path))["size"] == len(content)
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(RemoteError, match="No such file") as missing:
            link.stat(str(tmp_path))
        assert missing.value.errno == 2
        assert link.run(["cat"], b"abc") == b"abc"
        with pytest.raises(RemoteError, match="could not run ls on root@hv1: ls: cannot access"):
            link.run(["ls", "/nothing"])
        assert link.try_run(["false"]).status == 1
        assert link.free_bytes(str(hypervisor.images)) > 0
        assert link.names_in(str(hypervisor.images)) == ["file"]
        link.remove_file(str(path))
    assert not path.exists()


@pytest.mark.parametrize("uri", ["qemu+ssh://root@[{ipv6}]:2222/system", "qemu+ssh://{ipv4}/system?keyfile={other}"])
def test_address_port_and_key_of_the_uri(hypervisor: Hypervisor, uri: str) -> None:
    other = hypervisor.hosts.directory / "other"
    if "keyfile" in uri:
        hypervisor.authorize(key="other")
    with linked(uri.format(ipv4=hypervisor.ipv4, ipv6=hypervisor.ipv6, other=other)) as link:
        assert link.run(["hostname"]) == b"hv1\n"


def test_port_of_ssh_config(hypervisor: Hypervisor) -> None:
    more = f"Host elsewhere\n HostName {hypervisor.ipv6}\n Port 2222\n User root\n RemoteForward 22 localhost:1\n"
    with hypervisor.hosts.configured(more), linked("qemu+ssh://elsewhere/system") as link:
        assert link.run(["hostname"]) == b"hv1\n"


def test_refusals_before_the_helper_runs(hypervisor: Hypervisor) -> None:
    known = hypervisor.hosts.directory / "known_hosts"
    before = known.read_text()
    try:
        known.write_text("")
        with pytest.raises(SshError, match=r"No ED25519 host key is known for .*Host key verification failed"):
            linked(hypervisor.uri).__enter__()
        other = (hypervisor.hosts.directory / "other.pub").read_text().split()[:2]
        known.write_text(f"{hypervisor.name} {' '.join(other)}\n{hypervisor.ipv4} {' '.join(other)}\n")
        with pytest.raises(SshError, match=r"the host key of .* is not the ED25519 key that ssh knows"):
            linked(hypervisor.uri).__enter__()
    finally:
        known.write_text(before)
    hypervisor.authorize(key="other")
    with pytest.raises(SshError, match="Permission denied"):
        linked(hypervisor.uri).__enter__()
    hypervisor.authorize()
    with pytest.raises(SshError, match="Connection refused"):
        linked(f"qemu+ssh://root@{hypervisor.ipv4}:23/system").__enter__()
    with hypervisor.without("python3"), pytest.raises(HelperError, match=r"ended with status 12[67].*python3"):
        linked(hypervisor.uri).__enter__()
    hypervisor.authorize('command="echo no"')
    with pytest.raises(HelperError, match="ended with status 0: no"):
        linked(hypervisor.uri).__enter__()
    hypervisor.authorize("restrict")
    with linked(hypervisor.uri) as link, pytest.raises(ForwardingError, match="port-forwarding"):
        link.forward(Path("/nothing"))
    # In this direction, ssh forwards, and sshd refuses each connection.
    with linked(hypervisor.uri) as link, pytest.raises(ForwardingError, match="port-forwarding"):
        StorageDaemon(Silent(), elsewhere=remote_daemon.Hypervisor(link)).__enter__()


#: A server that sends back what it gets; its argument is a descriptor that listens, or the path of its socket.
ECHO = """
import os, socket, sys, threading
def serve(client):
    while data := client.recv(64):
        client.sendall(data)
if sys.argv[1].isdigit():
    server = socket.socket(fileno=int(sys.argv[1]))
else:
    server = socket.socket(socket.AF_UNIX)
    server.bind(sys.argv[1])
    server.listen()
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""
CLIENT = """
import socket, sys
with socket.socket(socket.AF_UNIX) as client:
    client.connect(sys.argv[1])
    client.sendall(b"there")
    print(client.recv(64).decode())
"""


def echoes(client: socket.socket) -> bool:
    client.sendall(b"here")
    return client.recv(64) == b"here"


def listening(sockets: str, *directories: str) -> int:
    """How many sockets in these directories listen, in the words of /proc/net/unix."""
    lines = [line.split() for line in sockets.splitlines()]
    return sum(words[5:6] == ["01"] and words[-1].rpartition("/")[0] in directories for words in lines)


def test_forwarding_that_has_ended_leaves_no_listener_and_its_connections_alone(
    hypervisor: Hypervisor, tmp_path: Path
) -> None:
    """A link can be that of many backups, one after the other."""
    here = tmp_path / "here"
    with (
        linked(hypervisor.uri) as link,
        subprocess.Popen([sys.executable, "-c", ECHO, here]) as server,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(server.kill)
        wait_for(here.exists, "the server here")
        there = f"{link.directory()}/echo"
        link.start(["python3", "-c", ECHO, "{fd}"], listen=there)

        def listeners() -> tuple[int, int]:
            ours, theirs = Path("/proc/net/unix").read_text(), hypervisor.run("cat", "/proc/net/unix")
            return listening(ours, str(link._directory)), listening(theirs, link.directory())

        before = listeners()
        clients = []
        for _ in range(3):
            remote = link.forward(here)
            assert hypervisor.run("python3", "-c", CLIENT, remote) == "there\n"
            with link.connected(there) as path:
                clients.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
                clients[-1].connect(str(path))
                assert echoes(clients[-1])
                assert listeners() == (before[0] + 1, before[1] + 1)
            link.end_forward(remote)
            assert not path.exists()
        assert listeners() == before
        assert all(map(echoes, clients))


def test_storage_daemon_there_ends_with_the_link(hypervisor: Hypervisor) -> None:
    image = hypervisor.images / "disk.qcow2"
    DiskSpec(image).create()
    reporter = Silent()
    node = {"driver": "qcow2", "node-name": "disk", "file": {"driver": "file", "filename": str(image)}}
    bitmap = {"node": "disk", "name": "kept", "persistent": True}
    with linked(hypervisor.uri) as link:
        with StorageDaemon(reporter, nodes=[node], elsewhere=remote_daemon.Hypervisor(link)) as daemon:
            daemon.execute("block-dirty-bitmap-add", bitmap)
        assert bitmaps(image) == ["kept"]
        assert listening(Path("/proc/net/unix").read_text(), str(link._directory)) == 1, "ssh's own"
        daemon = StorageDaemon(reporter, nodes=[node], elsewhere=remote_daemon.Hypervisor(link)).__enter__()
        daemon.execute("block-dirty-bitmap-add", {**bitmap, "name": "also kept"})
        assert link._connection is not None
        link._connection._process.kill()
        with pytest.raises(LinkLostError):
            daemon.execute("query-status")
        daemon.__exit__(LinkLostError)
    wait_for(lambda: not hypervisor.processes("qemu-storage-daemon"), "the end of the daemon")
    assert bitmaps(image) == ["kept", "also kept"]
    with linked(hypervisor.uri) as link, hypervisor.without("qemu-storage-daemon"):
        daemon = StorageDaemon(reporter, elsewhere=remote_daemon.Hypervisor(link))
        with pytest.raises(UnsuitableError, match=r"start qemu-storage-daemon on root@hv1: .*No such file"):
            daemon.__enter__()


def bitmaps(image: Path) -> list[str]:
    return [one["name"] for one in qemu_img_info(image)["format-specific"]["data"].get("bitmaps", [])]


def test_storage_daemon_that_another_link_keeps(hypervisor: Hypervisor) -> None:
    """As that of a pull session, which its watcher's link keeps: it goes on when those who use it have gone."""
    with linked(hypervisor.uri) as keeper, linked(hypervisor.uri) as link:
        pid, path = remote_daemon.launch(keeper, PROGRAM)
        process, monitor = keeper.process(pid), keeper.connect(path)
        for number in (1, 2):
            kept = remote_daemon.KeptDaemon(link, process, monitor)
            with kept.secret_file(b"secret") as file, StorageDaemon(Silent(), elsewhere=kept) as daemon:
                daemon.execute("object-add", {"qom-type": "secret", "id": f"of-{number}", "file": file})
                daemon.leave()
        assert not link.outlived(process, within_s=0)
        with StorageDaemon(Silent(), elsewhere=kept) as daemon:
            assert hypervisor.kill(PROGRAM) == 1
            with pytest.raises(StorageDaemonGoneError):
                daemon.execute("query-status")
        assert link.outlived(process, within_s=10)
        remote_daemon.launch(keeper, PROGRAM)
    wait_for(lambda: not hypervisor.processes(PROGRAM), "the end of the daemon")
