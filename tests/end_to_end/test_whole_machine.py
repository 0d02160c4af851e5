"""What a machine needs beside its disks is in the backup: after the loss of the original it is all there again."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libvirt
import pytest

from tests.daemon import Daemon, wait_for
from tests.filesystem import loop_device
from tests.lab import DiskSpec, Lab, Machine, compare, domain_xml, qemu_img_info
from tests.unit import builders
from vbackup.domain import host_files, machine_xml, nvram
from vbackup.model import ImageFormat
from vbackup.operations.restored_machine import TPM_SOURCE_SINCE

if TYPE_CHECKING:
    from tests.conftest import Command

SEABIOS = Path("/usr/share/seabios/bios-256k.bin")
MIB = 1024 * 1024


def back_up(command: Command, lab: Lab, repository: Path, name: str, *options: str) -> dict[str, Any]:
    return command("-c", lab.uri, "-q", "backup", name, "-r", repository, "--json", *options).document


def restore(command: Command, lab: Lab, repository: Path, name: str, output: Path) -> dict[str, Any]:
    return command("-c", lab.uri, "restore", name, "-r", repository, "--json", "--output", output).document


def machine_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """The files of the machine by kind, or by the drive that a medium is in."""
    return {one.get("dev") or one["kind"]: one for one in document.get("machine", [])}


def left_out(document: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {(left["kind"], left["dev"]) for left in document["left_out"]}


def sha256(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def lose(lab: Lab, machine: Machine, *originals: Path) -> None:
    """The host with all that the domain had is gone."""
    lab.remove(machine)
    for path in originals:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


# firmware, kernel, media


@pytest.fixture
def originals(tmp_path: Path) -> dict[str, Path]:
    """Files of a machine that its host has."""
    directory = tmp_path / "original"
    directory.mkdir()
    (directory / "code.fd").write_bytes(SEABIOS.read_bytes())
    contents = {
        "nvram": b"variable" * 64 * 1024,
        "initrd": os.urandom(3 * MIB + 17),
        "sda": os.urandom(2048 * 17),
        "fda": os.urandom(1440 * 1024),
    }
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    # A name for the kernel that an upgrade moves on, as Debian's /vmlinuz.
    (directory / "vmlinuz-6.1").write_bytes(kernel())
    (directory / "kernel").symlink_to("vmlinuz-6.1")
    return {name: directory / name for name in (*contents, "kernel")}


def kernel() -> bytes:
    """A kernel that QEMU loads, and that only halts: the header of Linux's boot protocol (2.0, one sector of setup)."""
    sector = bytearray(2 * 512)
    sector[0x1F1] = 1
    sector[0x1FE:0x200] = b"\x55\xaa"
    sector[0x202:0x206] = b"HdrS"
    sector[0x206:0x208] = b"\x00\x02"
    return bytes(sector) + b"\xf4\xeb\xfd" + bytes(4096)


def whole(tmp_path: Path, originals: Mapping[str, Path], name: str) -> str:
    spec = DiskSpec(tmp_path / "original" / "vda.qcow2", size="4M")
    spec.create()
    drives = (
        f"<disk type='file' device='cdrom'><source file='{originals['sda']}'/><target dev='sda' bus='scsi'/>"
        f"<readonly/></disk><disk type='file' device='floppy'><source file='{originals['fda']}'/>"
        "<target dev='fda' bus='fdc'/></disk>"
    )
    firmware = (
        f"<loader readonly='yes' type='pflash'>{tmp_path}/original/code.fd</loader><nvram>{originals['nvram']}</nvram>"
        f"<kernel>{originals['kernel']}</kernel><initrd>{originals['initrd']}</initrd><cmdline>quiet</cmdline>"
    )
    text = domain_xml(name, [spec.xml()], devices=drives, top="<metadata><x:a xmlns:x='urn:x'>b</x:a></metadata>")
    return text.replace("</os>", f"{firmware}</os>")


@pytest.mark.skipif(libvirt.getVersion() < 12_001_000, reason="libvirt has no <varstore> before 12.1")
@pytest.mark.parametrize("place", ["", "path"])
def test_varstore_is_restored_and_used(
    command: Command, lab: Lab, repository: Path, tmp_path: Path, place: str
) -> None:
    """At a place that the XML names, or at the one that libvirt chooses; QEMU reads what was restored."""
    name = f"varstore{place}"
    template, chosen = tmp_path / "template.json", f"path='{tmp_path}/web.varstore'" if place else ""
    template.write_text('{"version": 2, "variables": []}')
    spec = DiskSpec(tmp_path / "vda.qcow2", size="4M")
    spec.create()
    text = re.sub(r"machine='[^']*'", "machine='q35'", domain_xml(name, [spec.xml()]))
    firmware = f"<loader type='rom'>{SEABIOS}</loader><varstore template='{template}' {chosen}/>"
    machine = lab.define(text.replace("</os>", f"{firmware}</os>"))
    machine.handle.domain.create()
    has_one, path = machine_xml.varstore(machine.handle.live_xml())
    assert has_one
    assert path is not None
    known = sha256(Path(path))
    for _state in ("running", "off"):
        done = back_up(command, lab, repository, name)
        assert machine_of(done)["varstore"]["digest"] == known
        assert left_out(done) == set()
        if machine.handle.is_active():
            machine.handle.domain.destroy()
    lose(lab, machine, spec.path, *([Path(path)] if Path(path).exists() else []))
    restored = restore(command, lab, repository, name, tmp_path / "out")
    [there] = [Path(one["path"]) for one in restored["machine"] if one["kind"] == "varstore"]
    assert sha256(there) == known
    again = lab.define(Path(restored["domain_xml"]).read_text())
    again.handle.domain.create()
    assert machine_xml.varstore(again.handle.live_xml()) == (True, str(there))
    lab.remove(again)


@pytest.mark.parametrize("state", ["running", "off"])
def test_machine_whose_originals_are_lost_is_whole_again(
    command: Command, lab: Lab, repository: Path, tmp_path: Path, originals: dict[str, Path], state: str
) -> None:
    name = f"whole-{state}"
    machine = lab.define(whole(tmp_path, originals, name))
    machine.handle.domain.setAutostart(True)
    if state == "running":
        machine.handle.domain.create()
        machine.write("vda", "write -P 7 0 1M")
        originals["nvram"].write_bytes(b"guest's!" * 64 * 1024)  # what the guest has set meanwhile
    known = {kind: sha256(path) for kind, path in originals.items()}
    done = back_up(command, lab, repository, name, "--with-media")
    assert left_out(done) == set(), "all that is had is not left out"
    assert {kind: one["digest"] for kind, one in machine_of(done).items()} == known
    assert machine_of(done)["kernel"]["path"] == str(originals["kernel"])
    assert (done["autostart"], done["loader"]) == (True, f"{tmp_path}/original/code.fd")

    code = (tmp_path / "original" / "code.fd").read_bytes()
    lose(lab, machine, tmp_path / "original")
    output = tmp_path / "out"
    restored = restore(command, lab, repository, name, output)
    assert restored["autostart"] is True
    assert {kind: sha256(Path(one["path"])) for kind, one in machine_of(restored).items()} == known
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in output.iterdir())
    # The firmware is the host's, as its packages have it.
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "code.fd").write_bytes(code)
    text = Path(restored["domain_xml"]).read_text()
    assert text.count(f"{tmp_path}/original") == 1
    assert "urn:x" in text
    copy = lab.start(text)
    opened = command_line(copy)
    for path in (output / "kernel", output / "initrd", output / "nvram", output / "sda.medium", output / "fda.medium"):
        assert str(path) in opened
    (output / "nvram").write_bytes(b"restored" * 64 * 1024)
    assert [path.name for path in (tmp_path / "original").iterdir()] == ["code.fd"], (
        "nothing is written where the original was"
    )


def command_line(machine: Machine) -> str:
    """The arguments of the domain's QEMU."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"guest={machine.name}," in text:
            return text
    raise LookupError(machine.name)


def test_media_are_backed_up_on_request_and_no_larger_than_the_limit(
    command: Command, lab: Lab, repository: Path, tmp_path: Path, originals: dict[str, Path]
) -> None:
    lab.define(whole(tmp_path, originals, "media"))
    assert left_out(back_up(command, lab, repository, "media")) == {("disk", "sda"), ("disk", "fda")}
    os.truncate(originals["sda"], 64 * MIB + 1)
    done = back_up(command, lab, repository, "media", "--with-media")
    assert machine_of(done).keys() == {"nvram", "kernel", "initrd", "fda"}
    assert [(left["dev"], left["reason"]) for left in done["left_out"]] == [
        ("sda", f"cdrom {originals['sda']} is larger than 64 MiB")
    ]
    restored = restore(command, lab, repository, "media", tmp_path / "out")
    text = Path(restored["domain_xml"]).read_text()
    assert str(originals["sda"]) in text, "a medium that is only read stays where it is"
    assert str(originals["fda"]) not in text


def test_damaged_file_of_the_machine_is_found_and_repaired_and_never_restored(
    command: Command, lab: Lab, repository: Path, tmp_path: Path, originals: dict[str, Path]
) -> None:
    lab.define(whole(tmp_path, originals, "damaged"))
    done = back_up(command, lab, repository, "damaged")
    directory = repository / done["domain"]["uuid"] / done["id"]
    shutil.copytree(repository, tmp_path / "copy")
    good = (directory / "initrd").read_bytes()
    (directory / "initrd").write_bytes(b"x" + good[1:])
    assert "initrd" in command("verify", "damaged", "-r", repository, status=6).stderr
    output = tmp_path / "out"
    said = command("restore", "damaged", "-r", repository, "--output", output, status=6).stderr
    assert f"{directory}/initrd" in said
    assert not output.exists()
    (directory / "initrd").write_bytes(good[1:])
    command("check", "-r", repository, "--repair", "--from", tmp_path / "copy", status=None)
    assert (directory / "initrd").read_bytes() == good
    command("check", "-r", repository)
    restore(command, lab, repository, "damaged", output)
    shown = command("show", "damaged", "-r", repository).stdout
    assert "Autostart:   no" in shown
    assert f"kernel, of {originals['kernel']}" in " ".join(shown.split())


def test_files_of_the_machine_survive_a_merge(
    command: Command, lab: Lab, repository: Path, tmp_path: Path, originals: dict[str, Path]
) -> None:
    """Each goes with its backup."""
    machine = lab.start(whole(tmp_path, originals, "merged"))
    back_up(command, lab, repository, "merged")
    originals["initrd"].write_bytes(b"newer" * MIB)
    machine.write("vda", "write -P 9 0 1M")
    before = back_up(command, lab, repository, "merged")
    newest = back_up(command, lab, repository, "merged")
    assert newest["level"] == "incremental"
    files = [repository / newest["domain"]["uuid"] / one["id"] / "initrd" for one in (before, newest)]
    assert files[0].samefile(files[1]), "what is the same takes no room again"
    command("prune", "merged", "-r", repository, "--keep-last", "1")
    listed = command("list", "-r", repository, "--json").document["backups"]
    assert [one["id"] for one in listed] == [newest["id"]]
    command("verify", "merged", "-r", repository)
    restored = restore(command, lab, repository, "merged", tmp_path / "out")
    assert Path(machine_of(restored)["initrd"]["path"]).read_bytes() == b"newer" * MIB


# NVRAM that is in no file


@contextmanager
def nbd_export(image: Path, socket: Path) -> Iterator[None]:
    argv = ["qemu-nbd", "-f", "raw", "-k", str(socket), "-x", "vars", "-t", "-e", "8", str(image)]
    with subprocess.Popen(argv) as process:
        try:
            wait_for(socket.exists, "the socket of qemu-nbd")
            yield
        finally:
            process.terminate()


def test_variables_on_the_network_are_restored_to_a_file(
    command: Command, lab: Lab, repository: Path, tmp_path: Path, originals: dict[str, Path]
) -> None:
    socket = tmp_path / "nbd"
    source = (
        "<nvram type='network'><source protocol='nbd' name='vars'>"
        f"<host transport='unix' socket='{socket}'/></source></nvram>"
    )
    text = whole(tmp_path, originals, "network").replace(f"<nvram>{originals['nvram']}</nvram>", source)
    with nbd_export(originals["nvram"], socket):
        machine = lab.define(text)
        done = back_up(command, lab, repository, "network")
        assert machine_of(done)["nvram"]["digest"] == sha256(originals["nvram"])
        assert machine_of(done)["nvram"]["path"] == f"nbd+unix:///vars?socket={socket}"
    lab.remove(machine)
    restored = restore(command, lab, repository, "network", tmp_path / "out")
    text = Path(restored["domain_xml"]).read_text()
    assert f"<nvram>{tmp_path}/out/nvram</nvram>" in text
    lab.start(text)


def test_variables_on_a_block_device_are_restored_to_a_file(
    command: Command, lab: Lab, repository: Path, tmp_path: Path, originals: dict[str, Path]
) -> None:
    with loop_device(originals["nvram"]) as device:
        source = f"<nvram type='block'><source dev='{device}'/></nvram>"
        text = whole(tmp_path, originals, "block").replace(f"<nvram>{originals['nvram']}</nvram>", source)
        machine = lab.start(text)
        device.write_bytes(b"guest's!" * 64 * 1024)
        done = back_up(command, lab, repository, "block")
        lab.remove(machine)
    assert (machine_of(done)["nvram"]["path"], left_out(done)) == (str(device), {("disk", "sda"), ("disk", "fda")})
    restored = restore(command, lab, repository, "block", tmp_path / "out")
    assert (tmp_path / "out" / "nvram").read_bytes() == b"guest's!" * 64 * 1024
    text = Path(restored["domain_xml"]).read_text()
    assert f"<nvram>{tmp_path}/out/nvram</nvram>" in text
    assert str(device) not in text
    lab.start(text)


def test_qcow2_image_on_a_block_device_becomes_a_file_of_that_format(tmp_path: Path) -> None:
    """The device is larger than the image on it."""
    image, store = tmp_path / "image.qcow2", tmp_path / "store"
    for argv in (
        ["qemu-img", "create", "-q", "-f", "qcow2", str(image), "512k"],
        ["qemu-io", "-f", "qcow2", "-c", "write -P 17 64k 64k", str(image)],
    ):
        subprocess.run(argv, check=True, capture_output=True)
    store.write_bytes(image.read_bytes() + bytes(MIB))

    class Handle:
        host = property(lambda self: self)
        is_local = True

    handle: Any = Handle()
    with loop_device(store) as device:
        domain = builders.domain(nvram_path=str(device), nvram_format=ImageFormat.QCOW2)
        found = nvram.read(handle, domain, None, host_files.FilesHere())
    assert found is not None
    (tmp_path / "nvram").write_bytes(found.data)
    compare(tmp_path / "nvram", image)
    assert qemu_img_info(tmp_path / "nvram")["format"] == "qcow2"


# the emulated TPM


@pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed")
def test_commands_that_a_restore_prints_bring_the_tpm_back_with_its_keys(
    command: Command, daemon: Daemon, repository: Path, images: Path
) -> None:
    """swtpm runs as another user than vbackup."""
    spec = DiskSpec(images / "vda.qcow2", size="4M")
    spec.create()
    tpm = "<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>"
    machine = daemon.define(domain_xml("tpm", [spec.xml()], devices=tpm))
    machine.handle.domain.create()
    place = Path("/var/lib/libvirt/swtpm") / machine.handle.uuid / "tpm2"
    argv = ("-c", daemon.uri, "backup", "tpm", "-r", repository, "--json")
    done = command(*argv).document
    assert left_out(done) == set()
    assert machine_of(done)["tpm"]["path"] == str(place)
    machine.destroy()
    assert {path.name for path in place.iterdir()} >= {"tpm2-00.permall"}
    with tarfile.open(repository / machine.handle.uuid / done["id"] / "tpm.tar") as archive:
        assert archive.getnames() == ["tpm2-00.permall"]

    machine.handle.domain.undefine()
    shutil.rmtree(place.parent, ignore_errors=True)
    spec.path.unlink()
    output = images / "out"
    said = command("-c", daemon.uri, "restore", "tpm", "-r", repository, "--output", output)
    assert (output / "tpm").stat().st_mode & 0o777 == 0o700
    assert machine_xml.tpm((output / "domain.xml").read_text()) is not None
    has_source = libvirt.getVersion() >= TPM_SOURCE_SINCE
    assert (f"its state has to be in {place}" in said.stderr) is not has_source
    commands = said.stdout.partition("To run it:\n")[2].splitlines()
    assert commands[-1].split()[-2:] == ["start", "tpm"]
    commands[-1] += " --paused"  # firmware would change the state
    for line in commands:
        subprocess.run(["sh", "-c", line], check=True, capture_output=True)
    copy = Machine(daemon.host.domain("tpm"))
    again = command(*argv, "--level", "copy").document
    copy.destroy()
    assert machine_of(again)["tpm"]["path"] == str(output / "tpm" if has_source else place)
    # The state of a new TPM, with other keys, would differ.
    assert machine_of(again)["tpm"]["digest"] == machine_of(done)["tpm"]["digest"]


def test_tpm_that_never_ran_has_no_state_and_that_is_told(
    command: Command, lab: Lab, repository: Path, tmp_path: Path
) -> None:
    spec = DiskSpec(tmp_path / "vda.qcow2", size="4M")
    spec.create()
    lab.define(domain_xml("new-tpm", [spec.xml()], devices="<tpm model='tpm-tis'><backend type='emulator'/></tpm>"))
    done = back_up(command, lab, repository, "new-tpm")
    assert left_out(done) == {("tpm", "tpm")}
    assert "has no state in" in done["left_out"][0]["reason"]
    restored = restore(command, lab, repository, "new-tpm", tmp_path / "out")
    assert "<tpm" not in Path(restored["domain_xml"]).read_text(), "its place is the original's"
