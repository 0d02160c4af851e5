"""Real domains for tests and demo: an embedded libvirt, firmware-only guests, independent references.

One process can hold one embedded root, and a root can be held by one process (libvirt's rule), so the
tests of a pytest run share one Lab. No daemon, nothing outside the Lab's own directory.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from vbackup.domain.domain_xml import parse
from vbackup.domain.host import DomainHandle, Host, libvirt
from vbackup.domain.passthrough import Passthrough
from vbackup.names import is_ours

QEMU_CONF = """\
user = "{user}"
group = "{group}"
swtpm_user = "{user}"
swtpm_group = "{group}"
stdio_handler = "file"
security_driver = "none"
namespaces = []
dynamic_ownership = 0
"""

#: Begins a command. In a background job of a shell, as the tests may be, SIGINT is ignored, and so it would be in
#: all that they start.
HEEDING_SIGNALS = ("env", "--default-signal")


def write_qemu_conf(root: Path) -> None:
    """The driver's configuration: this user's QEMU, no virtlogd, no namespaces, so that it works in a container too."""
    (root / "etc").mkdir(parents=True, exist_ok=True)
    (root / "etc" / "qemu.conf").write_text(QEMU_CONF.format(user=f"+{os.getuid()}", group=f"+{os.getgid()}"))


@dataclass(frozen=True)
class DiskSpec:
    """A disk of a test domain."""

    path: Path
    dev: str = "vda"
    bus: str = "virtio"
    format: str = "qcow2"
    size: str = "64M"
    kind: str = "file"  #: file or block
    driver: str = ""  #: further attributes of <driver>
    inside: str = ""  #: further elements of <disk>
    backing: Path | None = None

    def create(self) -> None:
        """Make the image."""
        argv = ["qemu-img", "create", "-q", "-f", self.format]
        if self.backing is not None:
            argv += ["-b", os.fspath(self.backing), "-F", "qcow2"]
        subprocess.run([*argv, os.fspath(self.path), self.size], check=True)

    def xml(self) -> str:
        """The <disk> element."""
        source = "dev" if self.kind == "block" else "file"
        return (
            f"<disk type='{self.kind}' device='disk'><driver name='qemu' type='{self.format}' {self.driver}/>"
            f"<source {source}={quoteattr(os.fspath(self.path))}/>"
            f"<target dev='{self.dev}' bus='{self.bus}'/>{self.inside}</disk>"
        )


def create_luks(path: Path, *, passphrase: Path, size: str) -> None:
    """Make an encrypted image: LUKS within qcow2, or around a raw disk, as the name ends."""
    image_format, prefix = ("qcow2", "encrypt.") if path.suffix == ".qcow2" else ("luks", "")
    options = f"{prefix}key-secret=s,{prefix}iter-time=10" + (",encrypt.format=luks" if prefix else "")
    argv = ["qemu-img", "create", "-q", "-f", image_format, "--object", f"secret,id=s,file={passphrase}"]
    for _ in range(10):
        done = subprocess.run([*argv, "-o", options, str(path), size], capture_output=True, text=True, check=False)
        # QEMU times itself for the number of iterations, and gives up where the kernel's count steps back.
        if "Unable to get accurate CPU usage" not in done.stderr:
            break
        path.unlink(missing_ok=True)
    assert done.returncode == 0, done.stderr


def domain_xml(name: str, disks: Sequence[str], *, devices: str = "", top: str = "", memory_mib: int = 32) -> str:
    """A firmware-only domain: it runs, and its disks are written with qemu-io through its own devices."""
    return (
        "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
        f"<name>{escape(name)}</name><memory unit='MiB'>{memory_mib}</memory><vcpu>1</vcpu>{top}"
        "<os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>"
        f"<devices>{''.join(disks)}{devices}<controller type='scsi' model='virtio-scsi'/>"
        "<controller type='usb' model='none'/><memballoon model='none'/></devices></domain>"
    )


class Machine:
    """A running test domain."""

    def __init__(self, handle: DomainHandle) -> None:
        self.handle = handle
        self.name = handle.name
        self.monitor = Passthrough(handle)

    def execute(self, command: str, **arguments: Any) -> Any:
        """A QMP command; underscores in names become dashes."""
        return self.monitor.execute(command, {name.replace("_", "-"): value for name, value in arguments.items()})

    def qdev(self, dev: str) -> str:
        """The device of disk ``dev`` as query-block names it."""
        xml = self.handle.live_xml()
        # The alias follows the target within the same <disk>.
        after = xml[xml.index(f"<target dev='{dev}'") :]
        alias = after[after.index("<alias name='") + len("<alias name='") :].split("'", 1)[0]
        for entry in self.execute("query-block"):
            qdev: str = entry.get("qdev", "")
            if qdev == alias or qdev.split("/")[3:4] == [alias]:
                return qdev
        raise LookupError(f"no device for {dev}")

    def write(self, dev: str, *commands: str) -> None:
        """qemu-io commands ("write -P 17 1M 64k") through the guest's own device, as the guest would write.

        QEMU prints on its own output what becomes of them, so a failure, as for lack of space, is not noticed here.
        """
        qdev = self.qdev(dev)
        for command in commands:
            assert not command.startswith("read"), "nobody would notice another content: use check_content"
            said = self.execute("human-monitor-command", command_line=f'qemu-io -d {qdev} "{command}"')
            assert "rror" not in said, said

    def check_content(self, dev: str, *ranges: str) -> None:
        """The disk has this content: each range is what qemu-io's read takes, such as "-P 17 1M 64k"."""
        self.write(dev, "flush")
        [disk] = [one for one in parse(self.handle.live_xml()).disks if one.dev == dev]
        assert disk.path is not None
        for words in ranges:
            argv = ["qemu-io", "-U", "-r", "-f", str(disk.format), "-c", f"read {words}", disk.path]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr

    def bitmaps(self) -> dict[str, list[str]]:
        """The names of the bitmaps by node."""
        nodes = self.execute("query-named-block-nodes", flat=True)
        return {
            node["node-name"]: sorted(bitmap.get("name", "") for bitmap in node["dirty-bitmaps"])
            for node in nodes
            if node.get("dirty-bitmaps")
        }

    def state(self) -> dict[str, Any]:
        """All that a backup must leave as it was: nodes, bitmaps, jobs, descriptors."""
        return {
            "nodes": sorted(node["node-name"] for node in self.execute("query-named-block-nodes", flat=True)),
            "bitmaps": self.bitmaps(),
            "jobs": self.execute("query-jobs"),
            "fdsets": self.execute("query-fdsets"),
        }

    def is_active(self) -> bool:
        """Whether QEMU has its images to itself: the devices may use their nodes."""
        graph = self.execute("x-debug-query-block-graph")
        devices = {node["id"] for node in graph["nodes"] if node["type"] == "block-backend" and node["name"]}
        return all(edge["perm"] for edge in graph["edges"] if edge["parent"] in devices)

    def destroy(self) -> None:
        """End the domain, as virsh destroy does."""
        if self.handle.is_active():
            self.handle.domain.destroy()


class Lab:
    """An embedded libvirt driver with a separate root directory."""

    def __init__(self, root: Path) -> None:
        write_qemu_conf(root)
        self.root = root
        self.uri = f"qemu:///embed?root={root}"
        self.host = Host(self.uri)
        self.secrets_uri = f"secret:///embed?root={root}"
        self.machines: list[Machine] = []

    @functools.cached_property
    def secrets(self) -> Any:
        """The connection to its secrets: libvirt's embedded drivers have one each."""
        return libvirt.open(self.secrets_uri)

    def define(self, xml: str) -> Machine:
        """Define a domain, which is off then."""
        machine = Machine(self.host.domain(self.host.connection.defineXML(xml).name()))
        self.machines.append(machine)
        return machine

    def start(self, xml: str) -> Machine:
        """Define and start a domain."""
        machine = self.define(xml)
        machine.handle.domain.create()
        return machine

    def boot(self, name: str, disks: Sequence[DiskSpec], *, devices: str = "", top: str = "") -> Machine:
        """Make the images and start a firmware-only domain with them."""
        for disk in disks:
            disk.create()
        return self.start(domain_xml(name, [disk.xml() for disk in disks], devices=devices, top=top))

    def remove(self, machine: Machine) -> None:
        """End and undefine the domain."""
        machine.destroy()
        if machine.handle.domain.isPersistent():
            machine.handle.domain.undefineFlags(
                libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
            )
        self.machines.remove(machine)

    def clear(self) -> None:
        """End and undefine all domains."""
        for machine in list(self.machines):
            self.remove(machine)

    def close(self) -> None:
        """End everything."""
        self.clear()
        if "secrets" in vars(self):
            self.secrets.close()
        self.host.close()


@dataclass
class References:
    """Full copies of the disks, taken by QEMU in the very transaction of a backup but by other jobs.

    They are what a restore of that backup is compared with.
    """

    directory: Path
    after_transaction: Callable[[Passthrough], None] | None = None
    images: dict[str, Path] = field(default_factory=dict)  #: by node name
    _jobs: list[str] = field(default_factory=list)
    _count: int = 0

    @contextmanager
    def taken(self, monkeypatch: Any) -> Iterator[References]:
        """Every transaction of a backup sent in the block takes references too."""
        original = Passthrough.execute

        def execute(monitor: Passthrough, command: str, arguments: Any = None, *, fd: int | None = None) -> Any:
            if command != "transaction" or arguments["actions"][-1]["type"] == "abort":
                return original(monitor, command, arguments, fd=fd)
            more = [
                self._action(lambda name, data: original(monitor, name, data), action["data"]["device"])
                for action in arguments["actions"]
                if action["type"] == "blockdev-backup" and not is_ours(action["data"]["device"])
            ]
            if not more:
                return original(monitor, command, arguments, fd=fd)  # copies of what was put aside at the moment
            reply = original(monitor, command, {**arguments, "actions": [*arguments["actions"], *more]})
            if self.after_transaction is not None:
                self.after_transaction(monitor)
            return reply

        with monkeypatch.context() as patch:
            patch.setattr(Passthrough, "execute", execute)
            yield self

    def _action(self, execute: Callable[[str, Any], Any], node_name: str) -> dict[str, Any]:
        node = next(
            node for node in execute("query-named-block-nodes", {"flat": True}) if node["node-name"] == node_name
        )
        self.directory.mkdir(exist_ok=True)
        self._count += 1
        path = self.directory / f"{self._count}.qcow2"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", os.fspath(path), str(node["image"]["virtual-size"])], check=True
        )
        path.chmod(0o666)  # for a QEMU that is not root
        name = f"reference-{self._count}"
        file = {"driver": "file", "filename": os.fspath(path)}
        execute("blockdev-add", {"driver": "qcow2", "node-name": name, "file": file})
        self.images[node_name] = path
        self._jobs.append(name)
        # QEMU 11.1 fails an assertion (bdrv_replace_node_common) where two backups of one node end at the same time.
        ends_when_told = {"auto-finalize": False, "auto-dismiss": False}
        data = {"job-id": name, "device": node_name, "target": name, "sync": "full", **ends_when_told}
        return {"type": "blockdev-backup", "data": data}

    def finish(self, machine: Machine) -> dict[str, Path]:
        """Wait for the copies and close them; returns the images by node name."""
        deadline = time.monotonic() + 60
        while self._jobs:
            jobs = {job["id"]: job for job in machine.execute("query-jobs")}
            for name in list(self._jobs):
                job = jobs[name]
                if job["status"] == "pending":
                    machine.execute("job-finalize", id=name)
                if job["status"] == "concluded":
                    assert "error" not in job, job
                    machine.execute("job-dismiss", id=name)
                    machine.execute("blockdev-del", node_name=name)
                    self._jobs.remove(name)
            assert time.monotonic() < deadline, "the reference copies do not end"
        return self.images


@contextmanager
def qemu_io(image: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A qemu-io that has the image open during the block, and takes commands until its standard input is closed."""
    argv = ["qemu-io", "-f", "qcow2", *options, os.fspath(image)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("read 0 512\n")
        process.stdin.flush()
        assert "read 512" in process.stdout.readline()
        yield process
        process.stdin.close()


def compare(one: Path, other: Path) -> None:
    """Assert that two images hold the same bytes and are of the same size."""
    done = subprocess.run(
        ["qemu-img", "compare", os.fspath(one), os.fspath(other)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{one} and {other}: {done.stdout}{done.stderr}"
    # qemu-img takes images of different sizes for equal if the rest of the longer one is zero.
    assert qemu_img_info(one)["virtual-size"] == qemu_img_info(other)["virtual-size"]


def qemu_img_info(path: Path) -> dict[str, Any]:
    """What qemu-img says of an image."""
    done = subprocess.run(["qemu-img", "info", "-U", "--output=json", os.fspath(path)], capture_output=True, check=True)
    info: dict[str, Any] = json.loads(done.stdout)
    return info
