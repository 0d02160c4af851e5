"""A guest with UEFI variables, a TPM, thirty layers and a disk on every bus is lost, and one command brings it back."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.end_to_end.chains import levels, reasons
from tests.guest import Guest, build, make_disks
from tests.guest import domain_xml as guest_xml
from tests.lab import DiskSpec, Lab, Machine, compare, domain_xml
from tests.unit.builders import UUID
from vbackup.domain.host import libvirt
from vbackup.files import digest_of

if TYPE_CHECKING:
    from tests.conftest import Command

CODE, VARIABLES = (Path("/usr/share/OVMF") / name for name in ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"))
#: Linux's file of a UEFI variable: four bytes of attributes (kept over a reset, also while Linux runs), then its value.
EFIVARS = "/sys/firmware/efi/efivars"
VARIABLE = f"{EFIVARS}/Proof-6b9d5a3c-1f2e-4d77-8a11-0123456789ab"
#: libvirt 11 cannot start a domain with more than about 25 layers ("nesting too deep"), whoever asks it.
LAYERS = 30 if not 11_000_000 <= libvirt.getVersion() < 12_000_000 else 24
#: Disks that only QEMU and the firmware see: Debian's cloud kernel has no driver for two of the buses.
BUSES = {"sda": "scsi", "sdb": "sata", "sdc": "usb"}
DEVICES = (
    "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
    "<controller type='scsi' model='virtio-scsi'/><controller type='usb' model='qemu-xhci'/>"
)

pytestmark = pytest.mark.skipif(
    shutil.which("swtpm") is None or not CODE.exists(), reason="ovmf and swtpm are not both installed"
)


def with_layers(spec: DiskSpec, count: int) -> DiskSpec:
    """The disk with overlays on top of its image, ``count`` layers in all."""
    path, image_format = spec.path, spec.format
    for number in range(1, count):
        overlay = spec.path.with_name(f"layer-{number}.qcow2")
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(path), "-F", image_format, str(overlay)]
        subprocess.run(argv, check=True)
        path, image_format = overlay, "qcow2"
    return DiskSpec(path, spec.dev)


class Lost:
    """The guest, its backups, and what restores bring back."""

    def __init__(self, lab: Lab, command: Command, repository: Path, tmp_path: Path) -> None:
        self.lab, self.command, self.repository, self.tmp_path = lab, command, repository, tmp_path
        self.place = tmp_path / "original"
        vda, vdb = make_disks(self.place)
        self.others = {dev: DiskSpec(self.place / f"{dev}.qcow2", dev, bus, size="8M") for dev, bus in BUSES.items()}
        for spec in self.others.values():
            spec.create()
        image = build(self.place, modules=["efivarfs"])
        self.serial = self.place / "console"
        xml = guest_xml("lost", image, [with_layers(vda, LAYERS), vdb], serial=self.serial)
        disks = "".join(spec.xml() for spec in self.others.values())
        firmware = (
            f"<loader readonly='yes' type='pflash'>{CODE}</loader>"
            f"<nvram template='{VARIABLES}'>{self.place}/variables.fd</nvram>"
        )
        for old, new in (
            ("machine='pc'>hvm</type>", f"machine='q35'>hvm</type>{firmware}"),
            ("<name>lost</name>", f"<name>lost</name><uuid>{UUID}</uuid>"),
            ("<memory unit='MiB'>128<", "<memory unit='MiB'>256<"),
            ("<controller type='usb' model='none'/>", disks + DEVICES),
        ):
            assert old in xml
            xml = xml.replace(old, new)
        self.machine = lab.start(xml)

    def booted(self, machine: Machine) -> Guest:
        """The guest when its agent answers, with its UEFI variables at hand."""
        guest = Guest(machine, self.serial)
        guest.agent.wait(120)
        guest.agent.run("/bin/mount", "-t", "efivarfs", "efivarfs", EFIVARS)
        return guest

    def backup(self, name: str) -> dict[str, Any]:
        argv = ("-c", self.lab.uri, "-q", "backup", name, "-r", self.repository, "--quiesce", "required", "--json")
        return self.command(*argv).document

    def restored(self, output: str, *options: str) -> Machine:
        argv = ("-c", self.lab.uri, "restore", "lost", "-r", self.repository, "--output", self.tmp_path / output)
        document = self.command(*argv, "--json", *options).document
        machine = Machine(self.lab.host.domain(document["name"]))
        self.lab.machines.append(machine)
        return machine

    def tpm(self, place: Path) -> str:
        """A digest of the state of a TPM below that directory."""
        [found] = place.rglob("tpm2-00.permall")
        return digest_of(found.read_bytes())


@pytest.mark.long
def test_lost_guest_comes_back_under_its_own_name_and_under_a_new_one(
    lab: Lab, command: Command, repository: Path, tmp_path: Path
) -> None:
    lost = Lost(lab, command, repository, tmp_path)
    guest = lost.booted(lost.machine)
    guest.agent.write("/data/files/proof", b"what was in the guest")
    guest.agent.run("/bin/sh", "-c", f"printf '\\007\\000\\000\\000firmware' > {VARIABLE}")
    for number, dev in enumerate(BUSES, 1):
        lost.machine.write(dev, f"write -P {number} {number}M 64k")
    first = lost.backup("lost")
    assert first["consistency"] == "filesystem"
    lost.machine.destroy()
    of_libvirt = lab.root / "lib/swtpm" / UUID
    state = lost.tpm(of_libvirt)
    references = {dev: spec.path.rename(tmp_path / f"{dev}.qcow2") for dev, spec in lost.others.items()}
    lab.remove(lost.machine)
    shutil.rmtree(of_libvirt, ignore_errors=True)  # unless libvirt has removed it with the definition
    lost.place.rename(tmp_path / "kept")  # the domain's disks, variables, kernel and initrd are gone
    lost.place.mkdir()  # for the console

    machine = lost.restored("out", "--define")
    assert machine.handle.uuid == UUID
    assert lost.tpm(of_libvirt if of_libvirt.exists() else tmp_path / "out") == state
    for dev, reference in references.items():
        compare(reference, tmp_path / "out" / f"{dev}.qcow2")
    machine.handle.domain.create()
    guest = lost.booted(machine)
    assert guest.agent.read("/data/files/proof") == b"what was in the guest"
    assert guest.agent.read(VARIABLE)[4:] == b"firmware"
    guest.agent.write("/data/files/second", b"after the restore")
    second = lost.backup("lost")
    assert levels(second) == dict.fromkeys(("vda", "vdb", *BUSES), "incremental"), reasons(second)
    machine.destroy()

    copy = lost.restored("copy", "--name", "copy", "--start")
    assert copy.handle.uuid != UUID
    guest = lost.booted(copy)
    assert guest.agent.read("/data/files/second") == b"after the restore"
    assert guest.agent.read(VARIABLE)[4:] == b"firmware"


def test_thirty_layers_of_a_domain_that_is_off_come_back_as_one(
    lab: Lab, command: Command, repository: Path, tmp_path: Path
) -> None:
    """The restored domain has a single layer and starts, even if libvirt cannot start the original."""
    spec = DiskSpec(tmp_path / "vda.qcow2", size="8M")
    spec.create()
    top = with_layers(spec, 30)
    layers = [spec.path, *(tmp_path / f"layer-{number}.qcow2" for number in range(1, 30))]
    for number, layer in enumerate(layers):
        write = f"write -P {number + 1} {number * 128}k 128k"
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", write, str(layer)], check=True, stdout=subprocess.DEVNULL)
    machine = lab.define(domain_xml("deep", [top.xml()], top=f"<uuid>{UUID}</uuid>"))
    command("-c", lab.uri, "-q", "backup", "deep", "-r", repository)
    lab.remove(machine)
    output = tmp_path / "restored"
    command("-c", lab.uri, "-q", "restore", "deep", "-r", repository, "--output", output, "--start")
    restored = Machine(lab.host.domain("deep"))
    lab.machines.append(restored)
    restored.check_content("vda", *(f"-P {number + 1} {number * 128}k 128k" for number in range(30)))
    lab.remove(restored)
    compare(output / "vda.qcow2", top.path)
