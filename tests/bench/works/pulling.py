"""Pull of a disk out of a session, by nbdcopy, beside the same from a storage daemon that has nothing else to do."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.bench import Bench
from tests.bench.contenders import NBDCOPY, OURS, VBACKUP
from tests.bench.guests import Guest
from tests.bench.isolation import URI
from tests.unit.builders import Recorder
from vbackup.qemu.nbd_address import NbdAddress
from vbackup.qemu.storage_daemon import StorageDaemon
from vbackup.sessions.store import ENVIRONMENT

BARE = "qemu-storage-daemon"


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
