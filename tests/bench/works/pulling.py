"""Pull sessions: nbdcopy beside a storage daemon that does nothing else; and what the guest notices."""

from __future__ import annotations

import json
import os
import select
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench.bench import Bench
from tests.bench.contenders import NBDCOPY, OURS, VBACKUP
from tests.bench.guests import MIB, Guest
from tests.bench.isolation import URI
from tests.bench.works import moments
from tests.unit.builders import Recorder
from vbackup.qemu import nbd_address
from vbackup.qemu.nbd_address import NbdAddress
from vbackup.qemu.nbd_client import NbdClient
from vbackup.qemu.storage_daemon import StorageDaemon
from vbackup.sessions.store import ENVIRONMENT

BARE = "qemu-storage-daemon"
NO_SESSION, IDLE, STALLED = "no session", "session without a client", "session, its client has stopped reading"
#: The stalled client: requests that QEMU takes at a time of one connection (MAX_NBD_REQUESTS in nbd/server.c), and how
#: much each asks for, where guests.make_disk has put data.
CONNECTIONS, REQUESTS, REQUEST_BYTES, STEP_BYTES = 4, 16, 4 * MIB, 8 * MIB
_READ = struct.Struct(">IHHQQI")  #: NBD_CMD_READ: magic, flags, type, cookie, offset, length
_READ_MAGIC = 0x25609513


def pull(bench: Bench) -> None:
    """All of a disk to nowhere (null:), over a unix socket. The guest stands still."""
    if (reason := NBDCOPY.missing()) is not None:
        bench.record.skip("pull", reason)
        return
    disk = {"size_gib": bench.size(4, 1), "data_mib": bench.size(2048, 16)}
    with bench.place("work") as place, bench.guest(place, "pull", **disk) as guest:
        for _ in range(bench.rounds):
            with _bare(place, guest) as uri:
                _copy(bench, place, guest, BARE, uri)
            with _session(place, guest) as uri:
                _copy(bench, place, guest, OURS.name, uri)


def _copy(bench: Bench, place: Path, guest: Guest, contender: str, uri: str) -> None:
    bench.run(
        lambda meter: meter.run("nbdcopy", uri, "null:"), bench.record.case("pull", contender), output=place, of=[guest]
    )


@contextmanager
def _bare(place: Path, guest: Guest) -> Iterator[str]:
    path = place / "bare.sock"
    file = {"driver": "file", "filename": os.fspath(guest.disks["vda"]), "locking": "off"}
    node = {"driver": "qcow2", "node-name": "disk", "read-only": True, "file": file}
    with StorageDaemon(Recorder(), nodes=[node], is_only_read=True) as daemon:
        daemon.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": os.fspath(path)}}})
        daemon.execute("block-export-add", {"type": "nbd", "id": "e", "node-name": "disk", "name": "vda"})
        yield NbdAddress("vda", path=path).uri


@contextmanager
def _session(place: Path, guest: Guest) -> Iterator[str]:
    environment = {**os.environ, ENVIRONMENT: os.fspath(place / "sessions")}
    argv = [*VBACKUP, "session", "begin", guest.name, "--tracker", "bench", "--level", "full", "--json"]
    argv += ["--scratch", os.fspath(place), "-c", URI]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    session = json.loads(done.stdout)
    try:
        yield session["disks"][0]["uri"]
    finally:
        abort = [*VBACKUP, "session", "abort", session["id"], "-q"]
        subprocess.run(abort, env=environment, capture_output=True, check=True)


# what the guest notices


def stalled(bench: Bench) -> None:
    """How long the guest's writes take: without a session, with one, and while its client has stopped reading."""
    for _ in range(bench.rounds):
        for name in (NO_SESSION, IDLE, STALLED):
            # All of it is written for the first time: QEMU saves each block before.
            with moments.latency_guest(bench, data_mib=512) as (guest, place), ExitStack() as stack:
                if name != NO_SESSION:
                    uri = stack.enter_context(_session(place, guest))
                if name == STALLED:
                    stack.enter_context(_stalled_client(uri))
                moments.keep(bench, name, moments.quiet(guest))


@contextmanager
def _stalled_client(uri: str) -> Iterator[None]:
    """A client that has asked for 256 MiB, and takes none of it."""
    address = nbd_address.parse(uri)
    with ExitStack() as stack:
        for number in range(CONNECTIONS):
            client = stack.enter_context(NbdClient(address))
            for request in range(REQUESTS):
                offset_bytes = (number * REQUESTS + request) * STEP_BYTES
                asked = _READ.pack(_READ_MAGIC, 0, 0, request, offset_bytes, REQUEST_BYTES)
                os.write(client.fileno(), asked)
            ready, _, _ = select.select([client], [], [], 30)
            assert ready, "QEMU has sent nothing"
        yield
