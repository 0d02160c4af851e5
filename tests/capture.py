"""Capture tests/fixtures from a real QEMU and libvirt: ``python -m tests.capture`` (as root, half a minute).

Each fixture is a directory with what vbackup reads of one running domain: domain.xml as libvirt shows
it live, and QEMU's replies to the three queries of vbackup.qemu.block_graph. Of a domain that is off there is
only its XML; inactive.xml is the definition of a running one. The fixture efi needs the package ovmf. Nothing is typed
by hand and nothing is removed; only the temporary directory is called /capture. versions.json says what answered.
schema has what QEMU and its storage daemon say that ``transaction`` takes, and which block
drivers they have. Capture again when QEMU or libvirt show something new, and look at the difference.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from tests import qapi
from tests.lab import DiskSpec, Lab, Machine, domain_xml
from vbackup.qemu.qmp_socket import Socket

FIXTURES = Path(__file__).parent / "fixtures"
QUERIES = ("query-block", "query-blockstats", "query-named-block-nodes")
#: The repository whose bitmaps are ours, and a foreign one.
REPOSITORY, FOREIGN = "0123456789ab", "ba9876543210"
UUID = "f0000000-0000-4000-8000-00000000000{}"  # so that a new capture differs only where it should
FULL, INCREMENTAL = "20261123T101500Z-full", "20261124T101500Z-incremental"


def main() -> None:
    """Capture all."""
    directory = Path(tempfile.mkdtemp(prefix="vb-", dir="/tmp"))
    lab = Lab(directory / "lab")
    try:
        for capture in (rich, many, snapshot, bitmaps, off, differing, efi, state, schema):
            work = directory / capture.__name__
            work.mkdir()
            capture(lab, work)
            lab.clear()
            print(f"captured {capture.__name__}")
    finally:
        lab.close()
        shutil.rmtree(directory)


def rich(lab: Lab, work: Path) -> None:
    """A disk of every kind that libvirt lets start here."""
    words = work / "zwei Wörter & <mehr>"
    other = work / "other"
    for path in (words, other):
        path.mkdir()
    base = DiskSpec(work / "base.qcow2", size="4M")
    specs = [
        DiskSpec(words / "dïsk 'a'.qcow2", backing=base.path, driver="copy_on_read='on'", size="4M"),
        DiskSpec(
            work / "disk.qcow2", dev="vdb", size="4M",
            inside="<iotune><total_bytes_sec>500000000</total_bytes_sec></iotune><alias name='ua-my_own-alias'/>",
        ),
        DiskSpec(other / "disk.qcow2", dev="vdc", driver="iothread='1' discard='unmap'", size="4M"),
        DiskSpec(work / "plain.raw", dev="vdd", format="raw", size="4M"),
        DiskSpec(work / "scsi.qcow2", dev="sda", bus="scsi", size="4M"),
        DiskSpec(work / "sata.raw", dev="sdb", bus="sata", format="raw", size="4M"),
        DiskSpec(work / "ide.qcow2", dev="hda", bus="ide", size="4M"),
        DiskSpec(
            work / "both.qcow2", dev="vdi", driver="copy_on_read='on'", size="4M",
            inside="<iotune><read_iops_sec>10000</read_iops_sec></iotune>",
        ),
    ]  # fmt: skip
    for spec in (base, *specs):
        spec.create()
    others = [
        special(work / "readonly.raw", "vde", "<readonly/>"),
        special(work / "shared.raw", "vdf", "<shareable/>"),
        special(work / "transient.raw", "vdg", "<transient/>"),
        special(work / "cd.iso", "hdb", "<readonly/>", device="cdrom", bus="ide"),
        "<disk type='file' device='cdrom'><target dev='hdc' bus='ide'/><readonly/></disk>",
        special(work / "floppy.img", "fda", "", device="floppy", bus="fdc"),
    ]
    disks = [*(spec.xml() for spec in specs), *others]
    with nbd_server(work) as nbd, loop_device(work) as block:
        disks.append(nbd)
        if block is not None:
            disks.append(DiskSpec(block, dev="vdh", kind="block", format="raw").xml())
        machine = lab.start(domain_xml("käse & brot", disks, top=uuid(1) + "<iothreads>1</iothreads>"))
        record("rich", machine, work)
        lab.remove(machine)


def many(lab: Lab, work: Path) -> None:
    """vda to vdz, vdaa and vdab."""
    devs = [f"vd{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"] + ["vdaa", "vdab"]
    specs = [DiskSpec(work / f"{dev}.qcow2", dev=dev, size="1M") for dev in devs]
    bridges = "".join(f"<controller type='pci' index='{index}' model='pci-bridge'/>" for index in (1, 2))
    record("many", lab.boot("many", specs, devices=bridges, top=uuid(2)), work)


def snapshot(lab: Lab, work: Path) -> None:
    """An external snapshot of disks that have a checkpoint; libvirt repeats the bitmap in the overlay."""
    import libvirt  # after vbackup.domain.host, which makes it quiet

    machine = lab.boot(
        "snapshot",
        [
            DiskSpec(work / "vda.qcow2", size="4M"),
            DiskSpec(work / "vdb.qcow2", dev="vdb", size="4M"),
            DiskSpec(work / "vdc.raw", dev="vdc", format="raw", size="4M"),
        ],
        top=uuid(3),
    )
    tops = nodes(machine)
    for dev in ("vda", "vdb"):
        add_bitmap(machine, tops[dev], f"vbackup-{REPOSITORY}-{FULL}-{dev}", persistent=True)
    machine.write("vda", "write 0 64k")
    xml = "<domainsnapshot><name>one</name><disks>" + "".join(
        f"<disk name='{dev}' snapshot='{'external' if dev != 'vdb' else 'no'}'/>" for dev in ("vda", "vdb", "vdc")
    )
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    machine.handle.domain.snapshotCreateXML(xml + "</disks></domainsnapshot>", flags)
    machine.write("vda", "write 1M 64k")
    record("snapshot", machine, work)


def bitmaps(lab: Lab, work: Path) -> None:
    """Bitmaps in every state: ours, another repository's, libvirt's; recording, disabled, busy, inconsistent."""
    vda, vdb = DiskSpec(work / "vda.qcow2", size="4M"), DiskSpec(work / "vdb.qcow2", dev="vdb", size="4M")
    raw = DiskSpec(work / "vdc.raw", dev="vdc", format="raw", size="4M")
    target = DiskSpec(work / "target.qcow2", size="4M")
    for spec in (vda, vdb, raw, target):
        spec.create()
    crash(vdb.path, f"vbackup-{REPOSITORY}-{FULL}-vdb")
    machine = lab.start(domain_xml("bitmaps", [spec.xml() for spec in (vda, vdb, raw)], top=uuid(4)))
    tops = nodes(machine)
    add_bitmap(machine, tops["vda"], f"vbackup-{REPOSITORY}-{FULL}-vda", persistent=True)
    add_bitmap(machine, tops["vda"], f"vbackup-{REPOSITORY}-{INCREMENTAL}-vda", persistent=True)
    add_bitmap(machine, tops["vda"], f"vbackup-{FOREIGN}-{FULL}-vda", persistent=True)
    add_bitmap(machine, tops["vda"], "libvirt-checkpoint", persistent=True)
    working = f"vbackup-{REPOSITORY}-{INCREMENTAL}-vda-working"
    add_bitmap(machine, tops["vda"], working, disabled=True)
    add_bitmap(machine, tops["vdc"], f"vbackup-{REPOSITORY}-{FULL}-vdc")
    machine.write("vda", "write 0 1M")
    machine.write("vdc", "write 1M 64k")
    sources = [{"node": tops["vda"], "name": f"vbackup-{REPOSITORY}-{FULL}-vda"}]
    machine.execute("block-dirty-bitmap-merge", node=tops["vda"], target=working, bitmaps=sources)
    file = {"driver": "file", "filename": os.fspath(target.path)}
    machine.execute("blockdev-add", driver="qcow2", node_name="target", file=file)
    machine.execute(
        "blockdev-backup", job_id="job", device=tops["vda"], target="target", sync="bitmap", bitmap=working,
        bitmap_mode="never", speed=65536, auto_finalize=False, auto_dismiss=False,
    )  # fmt: skip
    record("bitmaps", machine, work)


def off(lab: Lab, work: Path) -> None:
    """A domain that is only defined, with disks that differ in how they are opened. Their images need not be there."""

    def disk(dev: str, source: str, *, kind: str = "file", image_format: str = "qcow2", inside: str = "") -> str:
        return (
            f"<disk type='{kind}' device='disk'><driver name='qemu' type='{image_format}'/>{source}"
            f"<target dev='{dev}' bus='virtio'/>{inside}</disk>"
        )

    def file(name: str, inside: str = "") -> str:
        return f"<source file='{work / name}'>{inside}</source>"

    def luks(secret: str) -> str:
        return f"<encryption format='luks'><secret type='passphrase' {secret}/></encryption>"

    backing = f"<backingStore type='file'><format type='qcow2'/>{file('base.qcow2')}<backingStore/></backingStore>"
    nbd = "<source protocol='nbd' name='export'><host name='192.0.2.1' port='10809'/></source>"
    disks = [
        disk("vda", file("vda.qcow2")),
        disk("vdb", file("overlay.qcow2"), inside=f"{backing}<alias name='ua-mine'/>"),
        disk("vdc", "<source dev='/dev/group/volume'/>", kind="block", image_format="raw"),
        disk("vdd", file("luks.qcow2", luks("uuid='5ec4e700-0000-4000-8000-000000000001'"))),
        disk("vde", file("luks.raw", luks(f"usage='{work / 'luks.raw'}'")), image_format="raw"),
        disk("vdf", "<source pool='images' volume='v.qcow2'/>", kind="volume"),
        disk("vdg", nbd, kind="network", image_format="raw"),
        disk(
            "vdh",
            file("slice.raw", "<slices><slice type='storage' offset='512' size='1048576'/></slices>"),
            image_format="raw",
        ),
        "<disk type='file' device='cdrom'><target dev='hda' bus='ide'/><readonly/></disk>",
        disk("vdi", file("readonly.qcow2"), inside="<readonly/>"),
    ]
    agent = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
    domain = lab.host.connection.defineXML(domain_xml("off", disks, devices=agent, top=uuid(5)))
    write_xml("off", domain.XMLDesc(0), work)
    write_versions("off", {"libvirt": lab.host.libvirt_version})
    domain.undefine()


def differing(lab: Lab, work: Path) -> None:
    """A running domain whose definition has other disks: attached only there, or only to the running one."""
    specs = [DiskSpec(work / f"{dev}.qcow2", dev=dev, size="1M") for dev in ("vda", "vdb")]
    machine = lab.boot("differing", specs, top=uuid(6))
    domain = machine.handle.domain
    running, defined = 1, 2  # VIR_DOMAIN_AFFECT_LIVE, VIR_DOMAIN_AFFECT_CONFIG
    both = DiskSpec(work / "new.qcow2", dev="vdd", size="1M", inside="<serial>new</serial>")
    scsi = DiskSpec(work / "live-sdb.qcow2", dev="sdb", bus="scsi", size="1M")
    for spec in (both, scsi):
        spec.create()
    domain.attachDeviceFlags(both.xml(), running | defined)
    domain.attachDeviceFlags(scsi.xml(), running)
    # vdb: another image in the definition. sdb: a cdrom there. vde: only there.
    domain.detachDeviceFlags(specs[1].xml(), defined)
    domain.attachDeviceFlags(DiskSpec(work / "other-vdb.qcow2", dev="vdb").xml(), defined)
    domain.attachDeviceFlags(special(work / "cd.iso", "sdb", "<readonly/>", device="cdrom", bus="scsi"), defined)
    domain.attachDeviceFlags(DiskSpec(work / "defined.qcow2", dev="vde").xml(), defined)
    record("differing", machine, work)
    write_xml("differing", machine.handle.definition_xml(), work, "inactive.xml")


def efi(lab: Lab, work: Path) -> None:
    """UEFI firmware that libvirt chooses: running, and its definition (package ovmf)."""
    spec = DiskSpec(work / "vda.qcow2", size="1M")
    spec.create()
    xml = domain_xml("efi", [spec.xml()], top=uuid(7)).replace("<os>", "<os firmware='efi'>").replace("'pc'", "'q35'")
    machine = lab.start(xml)
    record("efi", machine, lab.root)
    write_xml("efi", machine.handle.definition_xml(), lab.root, "inactive.xml")
    machine.destroy()
    machine.handle.domain.undefineFlags(4)  # VIR_DOMAIN_UNDEFINE_NVRAM
    lab.machines.remove(machine)


def state(lab: Lab, work: Path) -> None:
    """A domain that is only defined, with everything that keeps data on the host apart from disks."""
    devices = [
        "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>",
        folder(work / "share", "<driver type='virtiofs'/>"),
        folder(work / "docs", "", inside="<readonly/>"),
        "<shmem name='window'><model type='ivshmem-plain'/><size unit='M'>4</size></shmem>",
        memory("nvdimm", work, "<node>0</node><label><size unit='K'>256</size></label>"),
        memory("virtio-pmem", work, ""),
        host_device("pci", "<address domain='0' bus='1' slot='0' function='0'/>"),
        host_device("usb", "<vendor id='0x0951'/><product id='0x1666'/>"),
        host_device("scsi", "<adapter name='scsi_host0'/><address bus='0' target='0' unit='1'/>"),
        host_device("mdev", "<address uuid='5ec4e700-0000-4000-8000-000000000002'/>", "model='vfio-pci'"),
        f"<serial type='file'><source path='{work}/serial.txt' append='on'/><log file='{work}/serial.log'/></serial>",
        f"<parallel type='file'><source path='{work}/parallel.txt'/></parallel>",
        f"<lease><lockspace>space</lockspace><key>disk</key><target path='{work}/lease' offset='1048576'/></lease>",
    ]
    sdz = "<driver name='qemu' type='raw'/><source dev='/dev/sdz'/><target dev='sda' bus='scsi'/>"
    vhost = f"<driver name='qemu' type='raw'/><source type='unix' path='{work}/vhost.sock'/>"
    disks = [
        DiskSpec(work / "vda.qcow2").xml(),
        f"<disk type='file' device='disk'><source file='{work}/shared.raw'/><target dev='vdb'/><shareable/></disk>",
        f"<disk type='file' device='disk'><source file='{work}/read.raw'/><target dev='vdc'/><readonly/></disk>",
        f"<disk type='file' device='disk'><source file='{work}/base.raw'/><target dev='vdd'/><transient/></disk>",
        f"<disk type='block' device='lun'>{sdz}</disk>",
        f"<disk type='vhostuser'>{vhost}<target dev='vde' bus='virtio'/></disk>",
        f"<disk type='file' device='cdrom'><source file='{work}/cd.iso'/><target dev='sdb' bus='sata'/></disk>",
        f"<disk type='file' device='floppy'><source file='{work}/floppy.img'/><target dev='fda' bus='fdc'/></disk>",
    ]
    nvram = f"<loader readonly='yes' type='pflash'>{work}/CODE.fd</loader><nvram type='block'><source dev='/dev/vg/n'/>"
    arguments = "".join(f"<qemu:arg value='{word}'/>" for word in ("-drive", f"file={work}/hidden.raw,if=none,id=x"))
    xml = domain_xml("state", disks, devices="".join(devices), top=uuid(8) + MEMORY).replace("'pc'", "'q35'")
    xml = xml.replace("<controller type='usb' model='none'/>", "").replace("hvm</type>", f"hvm</type>{nvram}</nvram>")
    xml = xml.replace("</domain>", f"<qemu:commandline>{arguments}</qemu:commandline></domain>")
    domain = lab.host.connection.defineXML(xml)
    write_xml("state", domain.XMLDesc(0), work)
    write_versions("state", {"libvirt": lab.host.libvirt_version})
    domain.undefineFlags(8)  # VIR_DOMAIN_UNDEFINE_KEEP_NVRAM


MEMORY = (
    "<maxMemory slots='4' unit='MiB'>2048</maxMemory><memoryBacking><source type='memfd'/><access mode='shared'/>"
    "</memoryBacking><cpu><numa><cell id='0' cpus='0' memory='64' unit='MiB' memAccess='shared'/></numa></cpu>"
)


# how


def folder(path: Path, driver: str, *, inside: str = "") -> str:
    return f"<filesystem>{driver}<source dir='{path}'/><target dir='{path.name}'/>{inside}</filesystem>"


def memory(model: str, work: Path, inside: str) -> str:
    source = f"<source><path>{work}/{model}</path></source>"
    return f"<memory model='{model}'>{source}<target><size unit='M'>256</size>{inside}</target></memory>"


def host_device(kind: str, source: str, attributes: str = "") -> str:
    return f"<hostdev mode='subsystem' type='{kind}' {attributes}><source>{source}</source></hostdev>"


def uuid(number: int) -> str:
    return f"<uuid>{UUID.format(number)}</uuid>"


def record(name: str, machine: Machine, work: Path) -> None:
    """Write the fixture of a running domain."""
    write_xml(name, machine.handle.live_xml(), work)
    for query in QUERIES:
        arguments = {"flat": True} if query == "query-named-block-nodes" else {}
        entries = machine.execute(query, **arguments)
        lines = ",\n".join(json.dumps(entry, ensure_ascii=False, sort_keys=True) for entry in entries)
        (FIXTURES / name / f"{query}.json").write_text(scrub(f"[\n{lines}\n]\n", work))
    versions = {
        "qemu": machine.execute("query-version")["qemu"],
        "libvirt": machine.handle.host.libvirt_version,
    }
    write_versions(name, versions)


def write_xml(name: str, xml: str, work: Path, file: str = "domain.xml") -> None:
    (FIXTURES / name).mkdir(parents=True, exist_ok=True)
    (FIXTURES / name / file).write_text(scrub(xml, work))


def write_versions(name: str, versions: dict[str, Any]) -> None:
    (FIXTURES / name / "versions.json").write_text(json.dumps(versions, indent=1) + "\n")


def scrub(text: str, work: Path) -> str:
    return text.replace(os.fspath(work), "/capture")


def schema(lab: Lab, work: Path) -> None:
    """query-qmp-schema of QEMU and of qemu-storage-daemon: the entries that vbackup asks for, as they are."""
    machine = lab.boot("schema", [DiskSpec(work / "vda.qcow2", size="1M")])
    with storage_daemon(work / "qmp") as monitor:
        programs = {"qemu": machine.execute, "qemu-storage-daemon": monitor.execute}
        directory = FIXTURES / "schema"
        directory.mkdir(parents=True, exist_ok=True)
        versions = {}
        for name, execute in programs.items():
            # One entry a line: a difference shows what has changed.
            entries = qapi.reachable(
                execute("query-qmp-schema"), ("transaction", "blockdev-backup"), tags="blockdev-add"
            )
            text = ",\n".join(json.dumps(entry) for entry in entries)
            (directory / f"{name}.json").write_text(f"[\n{text}\n]\n")
            versions[name] = execute("query-version")
    (directory / "versions.json").write_text(json.dumps(versions, indent=1) + "\n")


@contextmanager
def storage_daemon(path: Path) -> Iterator[Socket]:
    """A monitor of a qemu-storage-daemon that serves QMP at ``path``."""
    argv = ["qemu-storage-daemon", "--chardev", f"socket,id=qmp,path={path},server=on,wait=off"]
    with subprocess.Popen([*argv, "--monitor", "chardev=qmp"], stdin=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 20
            while not path.exists():
                assert time.monotonic() < deadline, "qemu-storage-daemon makes no socket"
                time.sleep(0.01)  # nothing tells when it is there
            with Socket(os.fspath(path)) as monitor:
                yield monitor
        finally:
            process.kill()


def nodes(machine: Machine) -> dict[str, str]:
    """The node of each disk, by the name of its image, which is its dev here."""
    return {
        Path(entry["inserted"]["file"]).stem: entry["inserted"]["node-name"]
        for entry in machine.execute("query-block")
        if "inserted" in entry
    }


def add_bitmap(machine: Machine, node: str, name: str, **more: Any) -> None:
    machine.execute("block-dirty-bitmap-add", node=node, name=name, granularity=65536, **more)


def crash(path: Path, bitmap: str) -> None:
    """Leave a bitmap inconsistent: the program that had the image open crashed."""
    subprocess.run(["qemu-img", "bitmap", "--add", os.fspath(path), bitmap], check=True)
    argv: Sequence[str] = ["qemu-io", "-c", "write 0 64k", "-c", "abort", os.fspath(path)]
    subprocess.run(argv, check=False, capture_output=True)


def special(path: Path, dev: str, inside: str, *, device: str = "disk", bus: str = "virtio") -> str:
    path.write_bytes(bytes(1440 * 1024))
    return (
        f"<disk type='file' device='{device}'><driver name='qemu' type='raw'/>"
        f"<source file={quoteattr(os.fspath(path))}/><target dev='{dev}' bus='{bus}'/>{inside}</disk>"
    )


@contextmanager
def nbd_server(work: Path) -> Iterator[str]:
    """A disk that comes over the network."""
    path, image = work / "nbd", work / "network.raw"
    image.write_bytes(bytes(4 * 1024 * 1024))
    argv = ["qemu-nbd", "--fork", "--persistent", "--shared=0", "-f", "raw", "-x", "export", "-k", os.fspath(path)]
    pidfile = work / "nbd.pid"
    subprocess.run([*argv, f"--pid-file={pidfile}", os.fspath(image)], check=True)
    try:
        yield (
            "<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd' name='export'>"
            f"<host transport='unix' socket='{path}'/></source><target dev='vdj' bus='virtio'/></disk>"
        )
    finally:
        os.kill(int(pidfile.read_text()), 15)


@contextmanager
def loop_device(work: Path) -> Iterator[Path | None]:
    """A block device of the host, None where there is no loop device."""
    backing = work / "loop.raw"
    backing.write_bytes(bytes(4 * 1024 * 1024))
    made = subprocess.run(
        ["losetup", "--find", "--show", os.fspath(backing)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        print(f"no loop device: {made.stderr.strip()}")
        yield None
        return
    device = Path(made.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", os.fspath(device)], check=True)


if __name__ == "__main__":
    main()
