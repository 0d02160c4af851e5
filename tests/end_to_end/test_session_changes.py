"""The extents that vbackup names are all that a client has to read: locally, and over HTTPS."""

from __future__ import annotations

import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import certificates
from tests.daemon import Daemon
from tests.end_to_end import movers
from tests.end_to_end.test_sessions import DEVS, Vendor, pull_range

if TYPE_CHECKING:
    from tests.conftest import Command

MIB = 1024 * 1024


@pytest.fixture
def vendor(daemon: Daemon, command: Command, images: Path, sockets: Path) -> Vendor:
    made = Vendor(daemon, command, images, "pulled")
    images.chmod(0o777)  # QEMU, which is not root, makes the references
    made.start()
    return made


def changes(vendor: Vendor, session: dict[str, Any], dev: str, *options: str) -> list[dict[str, Any]]:
    """All pages of the extents of a disk."""
    found, offset = [], 0
    while True:
        words = ("changes", session["id"], "--disk", dev, "--max-results", "3", "--offset", str(offset))
        page = vendor.session(*words, *options)
        found += page["extents"]
        if page["next_offset"] is None:
            return found
        offset = page["next_offset"]


def blocks(extents: list[dict[str, Any]]) -> set[int]:
    return {
        number
        for one in extents
        for number in range(one["start"] // 65536, (one["start"] + one["length"] + 65535) // 65536)
    }


def update(vendor: Vendor, session: dict[str, Any]) -> int:
    """Bring the copies up to date; returns how much was read."""
    read_bytes = 0
    for disk in session["disks"]:
        copy = vendor.copy(disk["dev"])
        with copy.open("ab") as file:
            file.truncate(disk["size_bytes"])
        for extent in changes(vendor, session, disk["dev"]):
            start, length = extent["start"], extent["length"]
            assert extent["dirty"]
            if extent["zero"]:
                with copy.open("r+b") as file:
                    file.seek(start)
                    file.write(bytes(length))
                continue
            pull_range(disk["uri"], copy, start, length)
            read_bytes += length
    return read_bytes


def test_changed_extents_are_all_that_a_client_has_to_read(vendor: Vendor) -> None:
    machine = vendor.machine
    machine.write("vda", "write -P 1 0 8M", "write -P 2 20M 1M")
    machine.write("sda", "write -P 3 0 3M", "write -P 4 16M 1M")
    checkpoints: list[str] = []
    for turn in range(3):
        held = vendor.reference()
        session = vendor.begin()
        for dev in DEVS:  # the guest goes on
            machine.write(dev, f"write -P {turn + 100} {turn}M 2M", f"write -z {turn + 3}M 1M", "discard 8M 1M")
        read_bytes = update(vendor, session)
        vendor.check(held)
        assert read_bytes < (14 if turn == 0 else 6) * MIB  # zeros are not read
        if turn == 2:
            delta = changes(vendor, session, "vda")
            assert changes(vendor, session, "vda", "--kind", "between", checkpoints[-1]) == delta
            earlier = changes(vendor, session, "vda", "--kind", "between", checkpoints[0])
            assert blocks(earlier) >= blocks(delta)
            words = ("changes", session["id"], "--disk", "vda")
            assert vendor.session(*words, "--kind", "between", "20010101T000000Z-full", status=6)["status"] == 6
            assert vendor.session(*words, "--length", "1T", status=2)["status"] == 2
            allocated = changes(vendor, session, "vda", "--kind", "allocated")
            assert sum(one["length"] for one in allocated) < 16 * MIB
            assert not any(one["zero"] for one in allocated)
        vendor.session("commit", session["id"])
        checkpoints.append(session["checkpoint"])
    assert vendor.session("changes", session["id"], "--disk", "vda", status=6)["evidence"]["state"] == "committed"


def test_what_a_disk_has_grown_by_is_dirty(vendor: Vendor) -> None:
    machine = vendor.machine
    machine.write("vda", "write -P 1 0 1M")
    session = vendor.begin()
    update(vendor, session)
    vendor.session("commit", session["id"])
    machine.handle.domain.blockResize("vda", 96 * 1024)  # KiB
    machine.write("vda", "write -P 2 80M 64k")
    session = vendor.begin("--level", "incremental")
    extents = changes(vendor, session, "vda")
    first, *others = [(one["start"], one["start"] + one["length"], one["zero"]) for one in extents]
    assert first[0] <= 64 * MIB  # what was the last block can be dirty too
    assert first[1:] == (80 * MIB, True)
    assert others == [(80 * MIB, 80 * MIB + 65536, False), (80 * MIB + 65536, 96 * MIB, True)]
    vendor.session("abort", session["id"])


def test_data_mover_outside_the_host_gets_the_same(vendor: Vendor, sockets: Path, tmp_path: Path) -> None:
    machine = vendor.machine
    movers.prepare(tmp_path)
    machine.write("vda", "write -P 1 0 8M")
    copies: dict[str, bytearray] = {}
    for turn in range(2):
        held = vendor.reference()
        session = vendor.begin()
        machine.write("vda", f"write -P {turn + 5} {turn}M 3M", "write -z 5M 1M")
        with movers.served(tmp_path, session["id"], sessions=sockets / "state") as served:
            for disk in session["disks"]:
                copy = copies.setdefault(disk["dev"], bytearray(disk["size_bytes"]))
                _, read_bytes = served.pull(copy, disk["dev"], page_size=50)
                assert turn == 0 or read_bytes <= 5 * MIB
                vendor.copy(disk["dev"]).write_bytes(copy)
            vendor.check(held)
            if turn == 0:
                vendor.session("commit", session["id"])
                assert served.end(None)[0] == 0
                continue
            with subprocess.Popen(
                served.curl(served.url("data"), "--limit-rate", "100k"), stdout=subprocess.PIPE
            ) as stalled:
                assert stalled.stdout is not None
                assert stalled.stdout.read(100)
                vendor.session("abort", session["id"])
                assert served.end(None)[0] == 6
                stalled.kill()


def test_domain_that_is_off_is_served_too(vendor: Vendor, sockets: Path, tmp_path: Path) -> None:
    """Its commit closes the disks before it is one."""
    movers.prepare(tmp_path)
    vendor.machine.write("vda", "write -P 1 0 8M")
    held = vendor.reference()
    vendor.off()
    session = vendor.begin()
    with movers.served(tmp_path, session["id"], sessions=sockets / "state") as served:
        for disk in session["disks"]:
            copy = bytearray(disk["size_bytes"])
            served.pull(copy, disk["dev"], page_size=50)
            vendor.copy(disk["dev"]).write_bytes(copy)
        vendor.check(held)
        vendor.session("commit", session["id"])
        assert served.end(None)[0] == 0


def test_session_with_tls_has_the_same(vendor: Vendor, tmp_path: Path, sockets: Path) -> None:
    movers.prepare(tmp_path)
    pki = certificates.make(sockets / "pki")  # where QEMU, which is not root, can read them
    for path in (sockets, pki):
        path.chmod(0o755)
    for path in pki.iterdir():
        path.chmod(0o644)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    vendor.machine.write("vda", "write -P 1 0 8M")
    held = vendor.reference()
    session = vendor.begin("--listen", f"127.0.0.1:{port}", "--tls-creds", str(pki))
    assert len(changes(vendor, session, "vda")) == 2
    assert vendor.session("changes", session["id"], "--disk", "vda", "--tls-creds", str(tmp_path), status=7)
    with movers.served(tmp_path, session["id"], sessions=sockets / "state") as served:
        for disk in session["disks"]:
            copy = bytearray(disk["size_bytes"])
            served.pull(copy, disk["dev"], page_size=50)
            vendor.copy(disk["dev"]).write_bytes(copy)
        vendor.check(held)
        vendor.session("commit", session["id"])
        assert served.end(None)[0] == 0


def test_server_that_is_ended_leaves_the_session(vendor: Vendor, sockets: Path, tmp_path: Path) -> None:
    movers.prepare(tmp_path)
    session = vendor.begin()
    with movers.served(tmp_path, session["id"], sessions=sockets / "state") as served:
        assert served.end(signal.SIGTERM)[0] == 0
    assert vendor.session("status", session["id"])["state"] == "open"
    vendor.session("commit", session["id"])
