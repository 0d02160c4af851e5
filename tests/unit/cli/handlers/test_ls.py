"""``vbackup ls`` and vbackup.operations.ls: directories and file systems of a guest, with a fake of guestfish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tests.unit.builders import backup

if TYPE_CHECKING:
    from tests.conftest import Command
    from tests.unit.cli.handlers.conftest import InsideGuest

ONE = backup(1)
ETC = {
    "evil\x1b[31m\n": (0o100644, 1536, ""),
    "link": (0o120777, 5, "to\x07it"),
    "null": (0o20600, 0, ""),
    "sub": (0o41777, 4096, ""),
    "sub/program": (0o104755, 10, ""),
}


def test_directory_is_listed_as_ls_does(command: Command, filled: Path, guest: InsideGuest) -> None:
    guest.tree("/etc", ETC)
    done = command("ls", "web", "/etc", "-r", filled)
    lines = done.stdout.splitlines()
    assert lines == [
        "-rw-r--r-- 7 1000 1.5 KiB 2023-11-14 22:13:20 evil\\x1b[31m\\n",
        "lrwxrwxrwx 7 1000     5 B 2023-11-14 22:13:20 link -> to\\x07it",
        "crw------- 7 1000    1, 3 2023-11-14 22:13:20 null",
        "drwxrwxrwt 7 1000 4.0 KiB 2023-11-14 22:13:20 sub",
    ]
    assert done.stderr == "vbackup: Starting libguestfs's appliance.\n"
    assert command("ls", "web", "/etc", "-q", "-r", filled).stderr == ""
    missing = command("ls", "web", "/etc/sup", "-q", "-r", filled, status=5).stderr
    assert missing == "vbackup: There is no /etc/sup in the guest: /etc has sub, evil\\x1b[31m\\n, link, null.\n"
    lines = command("ls", "web", "-r", filled, "/etc", "-R", "--bytes").stdout.splitlines()
    assert [line.split(maxsplit=6)[3:] for line in lines[-2:]] == [
        ["4096", "2023-11-14", "22:13:20", "sub"],
        ["10", "2023-11-14", "22:13:20", "sub/program"],
    ]


def test_file_alone_and_the_backup_that_is_meant(command: Command, filled: Path, guest: InsideGuest) -> None:
    guest.tree("/etc", ETC)
    assert command("ls", "web", "--backup", ONE.id, "vda:/etc/link", "-r", filled).stdout.endswith(
        " link -> to\\x07it\n"
    )
    assert guest.opened == [(ONE.id, "vda")]
    listed = json.loads(command("ls", "--domain", "web", "/etc/sub/program", "-r", filled, "--json").stdout)
    assert listed["schema"] == "vbackup.ls/1"
    [entry] = listed["entries"]
    assert (entry["path"], entry["mode"], entry["size_bytes"]) == ("/etc/sub/program", "-rwsr-xr-x", 10)
    assert (entry["uid"], entry["gid"], entry["mtime"]) == (7, 1000, "2023-11-14T22:13:20.000000Z")


def test_without_a_path_the_file_systems_are_listed(command: Command, filled: Path, guest: InsideGuest) -> None:
    guest.fake.answer("list-partitions", with_="/dev/sda1\n")
    guest.fake.answer("lvs", with_="/dev/vg0/root\n")
    guest.fake.answer("vfs-type", "/dev/sda1", with_="ext4\n")
    guest.fake.answer("vfs-type", "/dev/vg0/root", with_="xfs\n")
    guest.fake.answer("blockdev-getsize64", with_="1073741824\n")
    lines = command("ls", "web", "-r", filled).stdout.splitlines()
    assert [line.split() for line in lines[1:]] == [["vda/1", "ext4", "1.0", "GiB"], ["vg0/root", "xfs", "1.0", "GiB"]]
    assert [
        each["name"] for each in json.loads(command("ls", "web", "-r", filled, "--json").stdout)["file_systems"]
    ] == [
        "vda/1",
        "vg0/root",
    ]


def test_bad_input_is_refused(command: Command, filled: Path, guest: InsideGuest, tmp_path: Path) -> None:
    assert "is no path in the guest" in command("ls", "web", "etc", "-r", filled, status=2).stderr
    assert "One path is listed" in command("ls", "web", "/a", "/b", "-r", filled, status=2).stderr
    assert "No domain given" in command("ls", "-r", filled, status=2).stderr
    assert "Unrecognized arguments: --no" in command("ls", "web", "--no", "/x", "-r", filled, status=2).stderr
    assert (
        "Cannot read the key file" in command("ls", "web", "-r", filled, "--key-file", tmp_path / "x", status=7).stderr
    )
    command("ls", "nobody", "/", "-r", filled, status=4)
    assert guest.opened == []
    assert "There is no /nix in the guest" in command("ls", "web", "/nix", "-r", filled, status=5).stderr
