"""Live restore: the time until the guest's agent answers, beside a local start of the image that was backed up."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from pathlib import Path

import libvirt

from tests.bench import guests
from tests.bench.bench import Bench, vbackup, vbackup_knows
from tests.bench.contenders import VBACKUP
from tests.bench.isolation import URI
from tests.bench.measuring import Meter
from tests.guest import Agent, MissingError, build, domain_xml, make_disks
from tests.lab import DiskSpec

LIVE, LOCAL = "restore --live", "virsh start, of the image itself"
_TIMEOUT_S = 300


def live(bench: Bench) -> None:
    """A guest with 2 GiB of data on its disk, most of which it does not read."""
    if not vbackup_knows("restore", "--live"):
        bench.record.skip(LIVE, "this vbackup has no restore --live")
        return
    for size_gib in (8, bench.size(1024, 64)):
        with bench.place("work") as place, bench.place("output") as repository, bench.place("nothing") as nothing:
            name = f"live{size_gib}"
            try:
                xml = _guest(bench, place, name, size_gib)
            except MissingError as err:
                bench.record.skip(LIVE, str(err))
                return
            where = {"x": size_gib, "unit": "GiB virtual size"}
            domain = bench.connection.defineXML(xml)
            vbackup(Meter(bench.log), "init", "-r", repository / "repository")
            vbackup(Meter(bench.log), "backup", name, "-r", repository / "repository")
            domain.undefine()
            for _ in range(bench.rounds):
                case = bench.record.case("until the agent answers", LOCAL, **where)
                bench.run(lambda _meter, xml=xml: _start(bench.connection, xml), case, output=nothing, of=[])
                local = bench.connection.lookupByName(name)
                local.destroy()
                local.undefine()
                case = bench.record.case("until the agent answers", LIVE, **where)
                with bench.place("restored") as restored:
                    words = ["restore", name, "-r", str(repository / "repository"), "-c", URI, "-q"]
                    with _Live(bench, [*words, "--live", "--output", str(restored / "disks")], name) as restore:
                        bench.run(lambda _meter, it=restore: it.start(), case, output=nothing, of=[])


def _guest(bench: Bench, place: Path, name: str, size_gib: int) -> str:
    """The XML of a guest whose first disk has that size: its file system at the beginning, and data all over it."""
    image = build(place / "boot")
    small, log = make_disks(place / "disks")
    raw = place / "filesystem"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(small.path), str(raw)], check=True)
    large = guests.make_disk(place / f"{name}.qcow2", size_gib=size_gib, data_mib=bench.size(2048, 16))
    size_bytes = raw.stat().st_size
    argv = ["qemu-io", "-f", "qcow2", "-c", f"write -q -s {raw} 0 {size_bytes}", str(large)]
    subprocess.run(argv, check=True)
    return domain_xml(name, image, [DiskSpec(large, "vda"), log], serial=place / "console")


def _start(connection: libvirt.virConnect, xml: str) -> None:
    connection.defineXML(xml).create()
    _wait(connection, xml.partition("<name>")[2].partition("</name>")[0])


def _wait(connection: libvirt.virConnect, name: str, process: subprocess.Popen[bytes] | None = None) -> None:
    """Until the agent answers. Raises TimeoutError, RuntimeError if the process ends before."""
    deadline, pause = time.monotonic() + _TIMEOUT_S, threading.Event()
    while time.monotonic() < deadline:
        if process is not None and process.poll():
            raise RuntimeError(f"vbackup ended with status {process.returncode}")
        try:
            agent = Agent(connection.lookupByName(name))
            if agent.is_connected():
                agent.execute("guest-ping")
                return
        except libvirt.libvirtError:
            pass  # it is not there yet
        pause.wait(0.02)
    raise TimeoutError(f"no agent of {name} answered")


class _Live:
    """A live restore that is aborted at the end of the block."""

    def __init__(self, bench: Bench, words: list[str], name: str) -> None:
        self._bench, self._words, self._name = bench, words, name
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> _Live:
        return self

    def start(self) -> None:
        """Return when the agent answers."""
        with self._bench.log.open("ab") as log:
            self._process = subprocess.Popen([*VBACKUP, *self._words], stdout=log, stderr=log)
        _wait(self._bench.connection, self._name, self._process)

    def __exit__(self, *_exc: object) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        if self._process.wait(_TIMEOUT_S):
            Meter(self._bench.log).run(*VBACKUP, *self._words, "--abort", "--yes")
        else:  # the data came home before
            restored = self._bench.connection.lookupByName(self._name)
            restored.destroy()
            restored.undefine()
