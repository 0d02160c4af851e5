"""``vbackup verify --boot`` with a real guest: true verdicts, a picture, and nothing left, whatever ends it.

The operation is vbackup.operations.boot_test, with boot_tpm.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.daemon import wait_for
from tests.end_to_end.test_mount import daemons, digests
from tests.guest import build, domain_xml, make_disks
from tests.guest.agent import AGENT_PORT
from tests.lab import HEEDING_SIGNALS, DiskSpec, Machine, write_qemu_conf
from tests.lab import domain_xml as firmware_xml
from vbackup import archive
from vbackup.cli import main
from vbackup.domain import boot_copy, boot_watch, screenshot
from vbackup.domain import domain_xml as domain_xml_
from vbackup.domain.boot_copy import Place
from vbackup.domain.boot_watch import Watched
from vbackup.domain.host import Host, libvirt
from vbackup.names import BOOT_COPY_PREFIX
from vbackup.repository import boot_result

if TYPE_CHECKING:
    from tests.conftest import Command
    from tests.daemon import Daemon
    from tests.lab import Lab

GIB = 1024**3
FIXTURES = sorted(path for path in (Path(__file__).parents[1] / "fixtures").glob("*/*.xml"))
DEVICES = "<video><model type='vga'/></video><interface type='user'><model type='virtio'/></interface>"
AGENT = f"<channel type='unix'><target type='virtio' name='{AGENT_PORT}'/></channel>"
LISTS_FILES = "/bin/sh -c 'cat /data/counter; test -e /data/files && ! ls /sys/class/net | grep -v lo'"


@pytest.fixture(scope="module")
def guest(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a backup of a guest that was off. Whatever of the host it needs, the copy gets a copy of."""
    directory, repository = tmp_path_factory.mktemp("guest"), tmp_path_factory.mktemp("boot") / "repository"
    text = domain_xml("guest", build(directory), make_disks(directory), serial=directory / "console")
    lab.define(text.replace("</devices>", f"{DEVICES}</devices>"))
    assert main(["init", "-r", str(repository)]) == 0
    assert main(["-c", lab.uri, "backup", "guest", "-r", str(repository), "-q"]) == 0
    lab.clear()
    return repository


def boot(command: Command, uri: str, repository: Path, *options: str, status: int = 0) -> dict[str, Any]:
    """Boot the newest backup, and return the result; nothing is left of the copy, and the repository is as it was."""
    before = digests(repository)
    done = command("-c", uri, "verify", "--all", "-r", repository, "--boot", "--json", *LIMIT, *options, status=status)
    assert unchanged(repository) == {path: kept for path, kept in before.items() if path.name not in BOOT_FILES}
    assert_nothing_is_left(repository)
    [domain] = done.document["domains"]
    found: dict[str, Any] = domain["boot"]
    return found


#: Longer than it takes on a busy machine; a later one of the same name counts.
LIMIT = ("--boot-timeout", "180s")
BOOT_FILES = (boot_result.NAME, boot_result.PICTURE)


def unchanged(repository: Path) -> dict[Path, Any]:
    return {path: kept for path, kept in digests(repository).items() if path.name not in BOOT_FILES}


def picture(repository: Path) -> bytes:
    [path] = repository.rglob(boot_result.PICTURE)
    return path.read_bytes()


def copies() -> list[int]:
    """QEMU processes of copies, and guards of them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue  # it has ended
        if f"guest={BOOT_COPY_PREFIX}".encode() in words or b"boot_guard" in words:
            found.append(int(path.parent.name))
    return found


def assert_nothing_is_left(repository: Path) -> None:
    assert copies() == []
    assert daemons(repository) == []
    assert [*Path("/run").glob(f"{BOOT_COPY_PREFIX}*"), *Path("/var/tmp").glob("vbackup-*.qcow2")] == []


# verdicts


def test_guest_that_boots_shows_it_in_every_way(
    lab: Lab, guest: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot_watch, "REST_S", 1.0)
    words = ("--boot-exec", LISTS_FILES, "--boot-console", "guest: ready after .* s", "--boot-screen")
    found = boot(command, lab.uri, guest, *words)
    assert found["verdict"] == "booted", found
    assert (found["exec_status"], found["kept"], found["disks"]) == (0, True, ["vda", "vdb"])
    assert int(found["exec_output"]) >= 0
    assert 0 < found["agent_s"] <= found["exec_s"] <= found["duration_s"]
    assert not screenshot.is_one_colour(picture(guest))
    [kept] = guest.rglob(boot_result.NAME)
    assert boot_result.read(kept.parent) is not None
    shown = command("show", "guest", kept.parent.name, "-r", guest)
    assert "Boot test:   booted, " in shown.stdout
    assert "its agent answered after" in shown.stdout
    assert command("check", "-r", guest).status == 0


def test_disk_that_has_nothing_to_boot_is_no_success(
    lab: Lab, command: Command, repository: Path, tmp_path: Path
) -> None:
    disk = DiskSpec(tmp_path / "vda.qcow2")
    disk.create()
    lab.define(firmware_xml("empty", [disk.xml()], devices=DEVICES + AGENT))
    command("-c", lab.uri, "backup", "empty", "-r", repository, "-q")
    words = ("--boot-exec", "true", "--boot-screen", "--boot-timeout", "4s")
    found = boot(command, lab.uri, repository, *words, status=6)
    assert found["verdict"] == "failed"
    assert found["reason"].startswith("Within 4 s, no guest agent answered and the guest read only ")
    assert found["reason"].endswith(" bytes of its disks: it did not boot from them.")
    assert not screenshot.is_one_colour(picture(repository))  # the firmware says that there is nothing
    [domain] = command("list", "-r", repository, "--json").document["backups"]
    assert domain["id"] == found["backup"]  # it can be used all the same


def test_filesystem_that_is_gone_is_seen_by_a_command(
    lab: Lab, command: Command, repository: Path, tmp_path: Path
) -> None:
    disks = make_disks(tmp_path)
    subprocess.run(["qemu-io", "-c", "write -z 0 2M", disks[0].path], check=True, stdout=subprocess.DEVNULL)
    lab.define(domain_xml("ruined", build(tmp_path), disks, serial=tmp_path / "console"))
    command("-c", lab.uri, "backup", "ruined", "-r", repository, "-q")
    found = boot(command, lab.uri, repository, "--boot-exec", LISTS_FILES, status=6)
    assert "exited with status 1 in the guest: " in found["reason"]
    assert "cannot mount vda" in found["console_end"]
    assert found["screenshot"] is None  # it has no screen


@pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed")
def test_copy_has_the_state_of_the_tpm_until_it_ends(
    daemon: Daemon, command: Command, repository: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, states = DiskSpec(images / "vda.qcow2"), Path("/var/lib/libvirt/swtpm")
    spec.create()
    tpm = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
    original = daemon.define(firmware_xml("sealed", [spec.xml()], devices=DEVICES + tpm))
    original.handle.domain.create()
    command("-c", daemon.uri, "-q", "backup", "sealed", "-r", repository)
    original.destroy()
    [saved] = repository.glob("*/*/tpm.tar")
    known, seen = archive.unpack(saved.read_bytes()), list[dict[str, bytes]]()
    before = {*states.iterdir()}
    start = Host.start_transient

    def started(host: Host, text: str) -> Any:
        identity = Path(states, domain_xml_.parse(text).uuid, "tpm2")
        seen.append({path.name: path.read_bytes() for path in identity.iterdir()})
        handle = start(host, text)
        assert len(Machine(handle).execute("query-tpm")) == 1
        return handle

    monkeypatch.setattr(Host, "start_transient", started)
    monkeypatch.setattr(boot_watch, "watch", lambda *_args, **_more: Watched(screen_s=1.0))
    found = boot(command, daemon.uri, repository, "--boot-screen")
    assert (found["verdict"], found["remarks"]) == ("booted", [])
    assert seen == [known]
    assert {*states.iterdir()} == before >= {states / original.handle.uuid}


def test_libvirt_accepts_the_copy_of_every_fixture(lab: Lab) -> None:
    for path in FIXTURES:
        text = path.read_text()
        devs = {disk.dev: disk.path for disk in domain_xml_.parse(text).disks}
        place = Place("/p/nbd", "/p", nvram="/p/nvram", has_tpm=True)
        for limit in (GIB // 4, 1024 * GIB):
            copy = boot_copy.make(text, None, devs, place, uuid=str(uuid.uuid4()), max_memory_bytes=limit)
            defined = lab.host.connection.defineXMLFlags(copy.xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
            defined.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)


# with processes of their own


@contextmanager
def started(uri: str, repository: Path) -> Iterator[subprocess.Popen[str]]:
    argv = [*HEEDING_SIGNALS, sys.executable, "-m", "vbackup", "-c", uri, "-r", str(repository)]
    with subprocess.Popen(
        [*argv, "verify", "guest", "--boot", "--json", *LIMIT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(processes: Sequence[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    results = []
    for process in processes:
        text, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
        results.append(json.loads(text)["domains"][0]["boot"])
    return results


def test_two_at_once_and_one_that_is_killed(daemon: Daemon, guest: Path) -> None:
    """QEMU runs as another user here, who gets nothing but the sockets."""
    before = unchanged(guest)
    with started(daemon.uri, guest) as one, started(daemon.uri, guest) as other, started(daemon.uri, guest) as killed:
        wait_for(lambda: len(copies()) == 6, "the start of three copies")
        os.kill(killed.pid, signal.SIGKILL)
        wait_for(lambda: len(copies()) == 4, "the end of the killed one's copy")
        results = ended([one, other])
    assert [result["verdict"] for result in results] == ["booted", "booted"]
    assert_nothing_is_left(guest)
    assert daemon.host.connection.listAllDomains() == []
    assert unchanged(guest) == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_a_copy_of_the_embedded_driver(guest: Path, images: Path, number: signal.Signals) -> None:
    """libvirt does not end it: the driver is gone with vbackup."""
    write_qemu_conf(images)
    before = unchanged(guest)
    with started(f"qemu:///embed?root={images}", guest) as process:
        wait_for(lambda: len(copies()) == 2, "the start of the copy")
        os.kill(process.pid, number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 143), said
    wait_for(lambda: not copies() and not daemons(guest), "the end of all processes")
    wait_for(lambda: not [*Path("/run").glob(f"{BOOT_COPY_PREFIX}*")], "the removal of the directory")
    assert_nothing_is_left(guest)
    assert unchanged(guest) == before
