"""What the demo tells and proves. It ends with an exception at the first thing that is not as it must be."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.demo import domain
from tests.demo.runner import DemoError, Runner
from tests.guest import build, domain_xml, make_disks
from tests.guest.disks import check_filesystem, read_file
from tests.guest.image import program
from tests.guest.machine import console, files_of
from tests.lab import qemu_img_info

MIB = 1024 * 1024
#: So much is on vda from the start: enough for a bar that can be watched.
BULK_BYTES = 96 * MIB
#: The guest's notes: one before each backup, one after the last.
NOTES = {
    "monday": "written before the full backup",
    "tuesday": "written before the incremental",
    "wednesday": "written before the differential",
    "thursday": "written after the last backup",
}
DISKS = {"vda": "/data", "vdb": "/log"}


class Story:
    """One telling, in one directory."""

    def __init__(self, directory: Path, runner: Runner) -> None:
        self.directory = directory
        self._runner = runner
        self._root = directory / "embed"
        self._bold, self._plain = ("\033[1m", "\033[0m") if _styled() else ("", "")
        self._proofs = 0
        self._chapters = 0

    def tell(self) -> None:
        """The story."""
        begun = time.monotonic()
        self._boot_guest()
        full = self._full_backup()
        incremental, differential = self._further_backups()
        self._show_tree([full, incremental, differential])
        middle = self._restore(incremental, "middle", "--backup", incremental, "--format", "raw")
        newest = self._restore(differential, "newest")
        self._prove_bytes({"incremental": middle, "differential": newest})
        self._prove_filesystems(middle, newest)
        self._boot_restored(newest)
        self._say(f"\n{self._bold}All {self._proofs} proofs hold.{self._plain} {time.monotonic() - begun:.0f} s.")

    # chapters

    def _boot_guest(self) -> None:
        self._chapter("A small real guest")
        image = build(self.directory / "guest")
        disks = make_disks(self.directory / "disks", bulk_bytes=BULK_BYTES)
        self._say(
            f"Debian's cloud kernel, busybox and qemu-ga: {image.initramfs.stat().st_size // MIB} MiB of initramfs.\n"
            f"  vda  qcow2, ext4 on /data, {BULK_BYTES // MIB} MiB of it used\n"
            "  vdb  raw, ext4 on /log\n"
            "libvirt runs inside each command (qemu:///embed), there is no daemon. The guest boots without KVM ..."
        )
        xml = self.directory / "domain.xml"
        xml.write_text(domain_xml(domain.NAME, image, disks, serial=self._root / domain.CONSOLE))
        self._domain("start", os.fspath(xml))
        self._show_console()
        self._say("From now on it writes to both disks all the time, also while they are being backed up.")

    def _full_backup(self) -> str:
        self._chapter("A full backup while the guest writes")
        self._say(f"The repository and libvirt are named once:\n$ cd {shlex.quote(os.fspath(self.directory))}")
        for name, value in environment(self.directory).items():
            self._say(f"$ export {name}={shlex.quote(value)}")
        self._vbackup("init")
        self._note("monday")
        self._say("Slowed down to be watched; the guest's agent freezes the filesystems for the first moment of it.")
        self._vbackup("backup", domain.NAME, "--quiesce", "required", "--speed", "40M")
        self._prove("the guest's filesystems are thawed", self._domain("status").strip() == "thawed")
        return self._newest_id()

    def _further_backups(self) -> tuple[str, str]:
        self._chapter("An incremental and a differential, each with a witness")
        self._say(
            "To prove the bytes something else must have seen them at the same moment. The next two backups\n"
            "therefore run through tests/demo/with_reference.py: it is the same vbackup, but the transaction\n"
            "that it sends to QEMU gets one more blockdev-backup job a disk, a full copy that knows nothing of\n"
            "vbackup's bitmaps. A restore must be equal to that copy."
        )
        ids = []
        for day, level, mib in (("tuesday", "incremental", 16), ("wednesday", "differential", 12)):
            self._note(day)
            self._say(f"Guest: writes {mib} MiB to /data/{day}.bin.")
            self._domain(
                "run", "/bin/dd", "if=/dev/urandom", f"of=/data/{day}.bin", "bs=1M", f"count={mib}", "conv=fsync"
            )
            arguments = ["backup", domain.NAME, "--level", level, "--quiesce", "required", "--speed", "16M"]
            self._say(f"$ vbackup {shlex.join(arguments)}")
            witness = f"witness-{level}"
            self._runner.module("tests.demo.with_reference", witness, "--", *arguments)
            ids.append(self._newest_id())
        self._note("thursday")
        return ids[0], ids[1]

    def _show_tree(self, ids: Sequence[str]) -> None:
        self._chapter("What there is")
        self._vbackup("list", "--tree")
        parents = {one["id"]: one["parent"] for one in self._document("list")["backups"]}
        self._prove(
            "the incremental and the differential both stand on the full",
            parents == {ids[0]: None, ids[1]: ids[0], ids[2]: ids[0]},
        )

    def _restore(self, backup_id: str, name: str, *options: str) -> Path:
        self._chapter(f"Restore the {name} one, {backup_id}")
        output = self.directory / name
        self._vbackup("restore", domain.NAME, *options, "--output", self._short(output))
        return output

    def _prove_bytes(self, restored: dict[str, Path]) -> None:
        self._chapter("Are these the bytes of those moments?")
        for level, output in restored.items():
            for dev in DISKS:
                restored_image, witness = _image(output, dev), self._witness(level, dev)
                self._compare(restored_image, witness)
                # qemu-img takes images of different sizes for equal if the rest of the longer one is zero.
                sizes = [qemu_img_info(image)["virtual-size"] for image in (restored_image, witness)]
                self._prove(f"{dev} of the {level} is byte for byte what its witness saw", sizes[0] == sizes[1])
        self._say("And would a difference be seen? The middle one against the witness of the newest:")
        self._compare(_image(restored["incremental"], "vda"), self._witness("differential", "vda"), status=1)
        self._proved("the two moments differ")

    def _prove_filesystems(self, middle: Path, newest: Path) -> None:
        self._chapter("Are the filesystems clean?")
        for output in (middle, newest):
            for dev in DISKS:
                raw = self._raw(_image(output, dev))
                self._say(f"$ e2fsck -fn {self._short(raw)}")
                check = check_filesystem(raw)
                passes = ("e2fsck ", "Pass ")
                self._say("\n".join(line for line in check.text.splitlines() if not line.startswith(passes)))
                self._prove(f"{dev} of the {output.name} one is clean", check.clean)
        self._prove_notes(middle, "monday", "tuesday")
        self._prove_notes(newest, "monday", "tuesday", "wednesday")
        for output in (middle, newest):
            on_vda, on_vdb = (int(read_file(self._raw(_image(output, dev)), "/counter") or -9) for dev in DISKS)
            self._prove(
                f"in the {output.name} one both disks are of one moment: the guest, which counts on vda and then on"
                f" vdb, had come to {on_vda} and {on_vdb}",
                on_vda - on_vdb in (0, 1),
            )

    def _boot_restored(self, newest: Path) -> None:
        self._chapter("Does it boot?")
        self._say("The original guest is destroyed and forgotten; the restored domain.xml is defined and started.")
        self._domain("end")
        self._domain("start", os.fspath(newest / "domain.xml"))
        lines = self._show_console()
        names = {Path(path).stem for path in files_of(lines)}
        self._prove("it has the notes of monday to wednesday, and no other", names == set(list(NOTES)[:3]))
        self._prove("its kernel had no journal to replay", not any("recover" in line for line in lines))
        self._domain("end")

    # what they are made of

    def _chapter(self, title: str) -> None:
        self._chapters += 1
        self._say(f"\n{self._bold}{self._chapters}. {title}{self._plain}")

    def _say(self, text: str) -> None:
        print(text, flush=True)

    def _prove(self, statement: str, holds: bool) -> None:
        if not holds:
            raise DemoError(f"It must be true, and is not, that {statement}.")
        self._proved(statement)

    def _proved(self, statement: str) -> None:
        self._proofs += 1
        self._say(f"{self._bold}Proved:{self._plain} {statement}.")

    def _vbackup(self, *arguments: str) -> None:
        self._say(f"$ vbackup {shlex.join(arguments)}")
        self._runner.module("vbackup", *arguments)

    def _document(self, *arguments: str) -> dict[str, list[dict[str, str]]]:
        document: dict[str, list[dict[str, str]]] = json.loads(
            self._runner.module("vbackup", *arguments, "--json", captured=True)
        )
        return document

    def _newest_id(self) -> str:
        return self._document("list")["backups"][-1]["id"]

    def _domain(self, command: str, *arguments: str) -> str:
        return self._runner.module("tests.demo.domain", command, os.fspath(self._root), *arguments, captured=True)

    def _show_and_run(self, *argv: str, statuses: Sequence[int] = (0,)) -> None:
        self._say(f"$ {shlex.join(argv)}")
        self._runner.run(argv, statuses=statuses)

    def _note(self, day: str) -> None:
        path = f"/data/files/{day}.txt"
        self._say(f"Guest: writes {path}.")
        self._domain("run", "/bin/sh", "-c", f"echo '{NOTES[day]}' > {path} && sync")

    def _show_console(self) -> list[str]:
        lines = console(self._root / domain.CONSOLE)
        for line in lines:
            self._say(f"  guest: {line}")
        return lines

    def _witness(self, level: str, dev: str) -> Path:
        return self.directory / f"witness-{level}" / f"{dev}.qcow2"

    def _compare(self, one: Path, other: Path, *, status: int = 0) -> None:
        self._show_and_run("qemu-img", "compare", self._short(one), self._short(other), statuses=(status,))

    def _short(self, path: Path) -> str:
        """As the commands, which run in the demo's directory, may name it."""
        return os.fspath(path.relative_to(self.directory))

    def _raw(self, image: Path) -> Path:
        """The image as a raw one, which is what e2fsck reads."""
        raw = image.with_suffix(".raw")
        if not raw.exists():
            self._show_and_run("qemu-img", "convert", "-O", "raw", self._short(image), self._short(raw))
        return raw

    def _prove_notes(self, output: Path, *days: str) -> None:
        raw = self._raw(_image(output, "vda"))
        found = [day for day in NOTES if read_file(raw, f"/files/{day}.txt") == f"{NOTES[day]}\n".encode()]
        self._prove(f"the {output.name} one has the notes of {', '.join(days)}, and no other", found == list(days))


def environment(directory: Path) -> dict[str, str]:
    """What the reader would export to type the commands."""
    return {
        "LIBVIRT_DEFAULT_URI": domain.uri(directory / "embed"),
        "VBACKUP_REPOSITORY": os.fspath(directory / "repository"),
    }


def private_places(directory: Path) -> dict[str, str]:
    """Where libvirt, used by somebody who is not root, keeps what it would keep at home."""
    return {
        f"XDG_{name}_HOME": os.fspath(directory / "home" / name.lower()) for name in ("CACHE", "CONFIG", "DATA")
    } | {"XDG_RUNTIME_DIR": os.fspath(directory / "home" / "run")}


def require_programs() -> None:
    """Raise MissingError before anything is begun, if something is missing that the story needs later."""
    for name in ("qemu-system-x86_64", "qemu-img", "cpio", "mkfs.ext4", "e2fsck", "debugfs", "ldd", "gzip"):
        program(name)


def _image(output: Path, dev: str) -> Path:
    return next(path for path in (output / f"{dev}.qcow2", output / f"{dev}.raw") if path.exists())


def _styled() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ
