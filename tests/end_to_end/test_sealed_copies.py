"""Encrypted copies: who can read them and who cannot, what leaves this machine, and restoring by hand with stock tools.

These are also the tests of cli.copies_rewrap, and of operations.copy_rewrap and copies.holding with real images, and of
what vbackup-copy(7) says about restoring by hand.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import age
from tests.age import KeyPair
from tests.end_to_end.test_machine import efi, firmware, nvram_of  # noqa: F401 - a fixture
from tests.fake_store import FakeStore
from tests.lab import Lab, compare
from tests.trees import State, Tree, raw_digest
from tests.unit.builders import Recorder
from vbackup import immutable
from vbackup.copies import view
from vbackup.errors import StorageError
from vbackup.operations import copy, copy_verify
from vbackup.operations.copy import CopyRequest
from vbackup.operations.copy_verify import CopyVerifyRequest
from vbackup.stop import Stop
from vbackup.stores.age_keys import Identity
from vbackup.stores.sealed import Keys, SealedStore

if TYPE_CHECKING:
    from tests.conftest import Command

SIZE = 1024 * 1024
MAN = Path(__file__).parents[2] / "man" / "vbackup-copy.7.rst"


@pytest.fixture
def pair(tmp_path: Path) -> KeyPair:
    return age.key_pair(tmp_path)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A full and two increments of two disks."""
    made = Tree(tmp_path / "repo")
    a, b = State.of(SIZE, {n: (n + 1, 77) for n in range(8)}), State.of(SIZE, {2: (9, 9)})
    last = made.backup({"vda": a, "vdb": b})
    for n in (1, 2):
        a, b = a.changed({n: (0, 0), 9: (40 + n, 5)}), b.changed({n: (150 + n, 3)})
        last = made.backup({"vda": a, "vdb": b}, {"vda": last, "vdb": last})
    return made


class Copies:
    """The command for one target; nothing is remembered between reads unless that is asked for."""

    def __init__(self, command: Command, tree: Tree, target: Path, tmp_path: Path) -> None:
        self.command, self.tree, self.target, self.tmp_path = command, tree, target, tmp_path
        self.count = 0

    def copy(self, *options: str | Path, status: int = 0) -> str:
        words = ("copy", "web", "-r", self.tree.repository.path, "--to", self.target)
        return self.command(*words, *options, status=status).stderr

    def new_path(self) -> Path:
        self.count += 1
        return self.tmp_path / f"new{self.count}"

    def restore(self, *options: str | Path, status: int = 0) -> tuple[Path, str]:
        """Restore the newest point without repository or record; returns the directory, and what was said."""
        output = self.new_path()
        words = ("-q", "restore", "web", "--from", self.target, "--cache", self.new_path(), "--output", output)
        said = self.command(*words, *options, status=status).stderr
        return output, said

    def check(self, *options: str | Path) -> None:
        output, _ = self.restore(*options)
        for dev, state in self.tree.states[self.tree.ids()[-1]].items():
            assert raw_digest(output / f"{dev}.qcow2") == state.digest


@pytest.fixture
def copies(command: Command, tree: Tree, tmp_path: Path) -> Copies:
    return Copies(command, tree, tmp_path / "target", tmp_path)


def test_points_come_back_from_the_target_alone(copies: Copies, pair: KeyPair, tmp_path: Path) -> None:
    other = age.key_pair(tmp_path, "other.txt")
    recipients = tmp_path / "recipients"
    recipients.write_text(f"# the safe\n{other.recipient}\n")
    copies.copy("--recipient", pair.recipient, "--recipients-file", recipients)
    tree = copies.tree
    assert sorted(path.name for path in (copies.target / tree.uuid / tree.ids()[0]).iterdir()) == [
        *("domain.xml.age", "manifest.json.age", "vda.blocks.age", "vda.qcow2.age", "vdb.blocks.age", "vdb.qcow2.age")
    ]
    copies.check("--identity", pair.path)
    copies.check("--identity", f"command:cat {other.path}")
    _, said = copies.restore("-v", "--identity", pair.path, "--identity", f"command:cat {other.path}")
    assert "AGE-SECRET-KEY" not in said
    path = tmp_path / "fetched"
    words = ("--from", copies.target, "--identity", pair.path, "--cache", copies.new_path())
    copies.command("-q", "fetch", "-r", path, *words)
    copies.command("verify", "web", "-r", path)
    assert [line for line in copies.command("list", "web", *words).stdout.splitlines() if "-full" in line]
    assert "3 backups" in copies.command("verify", "web", *words).stdout


def test_identity_that_is_missing_or_wrong_is_status_six(copies: Copies, pair: KeyPair, tmp_path: Path) -> None:
    copies.copy("--recipient", pair.recipient)
    wrong = age.key_pair(tmp_path, "wrong.txt")
    readable = tmp_path / "readable.txt"
    shutil.copy(pair.path, readable)
    readable.chmod(0o644)
    for options, why in (
        ((), "give the identity that opens it"),
        (("--identity", wrong.path), "sealed to other recipients"),
        (("--identity", readable), "0600"),
        (("--identity", "command:false"), "status 1"),
    ):
        output, said = copies.restore(*options, status=6)
        assert why in said
        assert not output.exists()
    words = ("--from", copies.target, "--cache", tmp_path / "cache")
    for command in (("list",), ("show", "web"), ("verify", "web"), ("fetch", "-r", tmp_path / "r")):
        copies.command(*command, *words, status=6)
    assert not (tmp_path / "r").exists()
    # A record that knows the manifests does not open the images.
    copies.command("list", *words, "--identity", pair.path)
    copies.command("list", *words)
    for options in ((), ("--identity", wrong.path)):
        copies.command("restore", "web", *words, "--output", tmp_path / "out", *options, status=6)
        copies.command("verify", "web", *words, *options, status=6)
        assert not (tmp_path / "out").exists()
    said = copies.copy(status=2)
    assert "--recipient" in said
    assert (
        "not encrypted"
        in copies.command(
            *("copy", "web", "-r", copies.tree.repository.path, "--to", plain_target(copies)),
            *("--recipient", pair.recipient),
            status=2,
        ).stderr
    )


def plain_target(copies: Copies) -> Path:
    path = copies.new_path()
    copies.command("-q", "copy", "web", "-r", copies.tree.repository.path, "--to", path)
    return path


def test_machine_that_writes_needs_no_identity_and_another_begins_with_a_full(
    copies: Copies, pair: KeyPair, tmp_path: Path
) -> None:
    copies.copy("--recipient", pair.recipient)
    tree = copies.tree
    last = tree.ids()[-1]
    states = {dev: state.changed({11: (1, 2)}) for dev, state in tree.states[last].items()}
    tree.backup(states, dict.fromkeys(states, last))
    record = tree.repository.path / "copies"
    record.rename(tmp_path / "record")
    to = ("--recipient", pair.recipient)
    words = ("copy", "web", "-r", tree.repository.path, "--to", copies.target, "--json", "--dry-run", *to)
    outcome = copies.command(*words)
    assert "knows only the names" in outcome.stderr
    [point] = outcome.document["domains"][0]["copied"]
    assert {disk["form"] for disk in point["disks"]} == {"full"}
    [point] = copies.command(*words, "--identity", pair.path).document["domains"][0]["copied"]
    assert {disk["form"] for disk in point["disks"]} == {"as-it-is"}
    shutil.rmtree(record)
    (tmp_path / "record").rename(record)
    outcome = copies.command(*words)
    assert outcome.stderr == ""
    [point] = outcome.document["domains"][0]["copied"]
    assert {disk["form"] for disk in point["disks"]} == {"as-it-is"}
    copies.copy(*to)
    copies.check("--identity", pair.path)
    # Its own record is also what a list and a prune on this machine go by.
    local = ("-r", tree.repository.path, "--cache", copies.new_path())
    assert "4" in copies.command("list", "--from", copies.target, *local).stdout
    pruning = ("prune", "web", "--at", copies.target, "--keep-last", "1")
    copies.command(*pruning, "--cache", copies.new_path(), status=6)
    assert "depends on it" in copies.command(*pruning, *local).stdout


def test_rewrap_lets_others_read(copies: Copies, pair: KeyPair, tmp_path: Path) -> None:
    copies.copy("--recipient", pair.recipient)
    new = age.key_pair(tmp_path, "new.txt")
    images = {path: path.read_bytes() for path in copies.target.rglob("*.qcow2.age")}
    copies.restore("--identity", new.path, status=6)
    words = ("copy", "--rewrap", "--to", copies.target, "--recipient", new.recipient)
    copies.command(*words, status=6)
    copies.command(*words, "--identity", new.path, status=6)
    done = copies.command(*words, "--identity", pair.path, "--json").document
    assert (done["backups"], done["objects"], done["passed"]) == (3, 18, [])
    assert "0 new headers" in copies.command(*words, "--identity", pair.path).stdout
    assert {path: path.read_bytes() for path in images} == images
    copies.check("--identity", new.path)
    copies.check("--identity", pair.path)
    copies.command(*words, "--identity", pair.path, "--all", status=2)


@pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse")
def test_mount_asks_the_program_for_the_identity_while_it_has_the_terminal(copies: Copies, pair: KeyPair) -> None:
    """The command goes to the background, in another session of the kernel, before it opens the target."""
    copies.copy("--recipient", pair.recipient)
    program = copies.tmp_path / "program"
    program.write_text(f"#!/bin/sh\nps -o sid= -p $$ > {copies.tmp_path}/session\ncat {pair.path}\n")
    program.chmod(0o755)
    directory = copies.new_path()
    argv = [sys.executable, "-m", "vbackup", "-q"]
    words = ["mount", "web", directory, "--from", copies.target, "--identity", f"command:{program}"]
    subprocess.run([*argv, *words, "--cache", copies.new_path()], check=True)
    try:
        digest = hashlib.sha256(next(directory.glob("vda*")).read_bytes()).hexdigest()
        assert digest == copies.tree.states[copies.tree.ids()[-1]]["vda"].digest
    finally:
        subprocess.run([*argv, "umount", directory], check=True)
    assert int((copies.tmp_path / "session").read_text()) == os.getsid(0)


@pytest.mark.parametrize("begins_again", [False, True])
def test_copy_that_ends_at_any_object_goes_on_for_the_recipients_that_it_has_now(
    tree: Tree, tmp_path: Path, begins_again: bool
) -> None:
    """Killed before its n-th call of the store; with other recipients, nothing is left that only the first can open."""
    first, second = (Identity(bytes([number]) * 32) for number in (1, 2))
    last = second if begins_again else first
    for end in itertools.count(2, 3):
        store, countdown = FakeStore(), end

        def dies(_what: str, _key: str) -> None:
            nonlocal countdown
            countdown -= 1
            if countdown <= 0:
                raise StorageError("gone")

        store.before = dies
        try:
            copy_to(tree, store, first)
        except StorageError:
            assert countdown <= 0
        else:
            break
        finally:
            store.before = lambda _what, _key: None
        whole = [point for point in tree.ids() if f"{tree.uuid}/{point}/manifest.json.age" in store.objects]
        copy_to(tree, store, last)
        with view.opened(
            store, tmp_path / f"cache{end}", keys=Keys((), (last, first)), reporter=Recorder(), stop=Stop()
        ) as opened:
            assert list(opened.there[tree.uuid].points) == tree.ids()
            assert copy_verify.run(CopyVerifyRequest(tree.uuid), opened).damage == {}
        for point in tree.ids():
            sealed = SealedStore(store, Keys((), (first if point in whole else last,)))
            objects = [each.key for each in sealed.list(f"{tree.uuid}/{point}/")]
            assert len(objects) == 6
            for key in objects:
                sealed.check_identity(key)
        shutil.rmtree(tree.repository.path / "copies")
    assert end > 20


def copy_to(tree: Tree, store: FakeStore, identity: Identity) -> None:
    keys = Keys((identity.recipient,))
    request = CopyRequest(tree.uuid, parallel=1)
    copy.run(request, repository=tree.repository, store=store, keys=keys, reporter=Recorder(), stop=Stop())


def by_hand(copies: Copies, number: int, output: Path, key: Path) -> None:
    """Run the commands of the man page, in a shell, with the names of this test."""
    text = MAN.read_text().split("\nRESTORING BY HAND\n")[1]
    block = text.split("::\n\n")[number + 1].split("\n\n")[0]
    lines = [line.removeprefix("    ") for line in block.splitlines()]
    script = "\n".join(lines)
    for word, value in (
        ("/mnt/target", str(copies.target)),
        ("/restored", str(output)),
        ("/root/key.txt", str(key)),
        ("UUID", copies.tree.uuid),
        ("BACKUP", copies.tree.ids()[-1]),
    ):
        assert word in script
        script = script.replace(word, value)
    subprocess.run(["sh", "-eu", "-c", script], check=True, cwd=output, env={**os.environ, "LC_ALL": "C"})


@pytest.mark.parametrize("is_rewrapped", [False, True])
def test_restore_by_hand_with_age_and_qemu_img(
    copies: Copies, pair: KeyPair, tmp_path: Path, is_rewrapped: bool
) -> None:
    copies.copy("--recipient", pair.recipient)
    key = pair
    if is_rewrapped:
        key = age.key_pair(tmp_path, "new.txt")
        words = ("-q", "copy", "--rewrap", "--to", copies.target, "--recipient", key.recipient)
        copies.command(*words, "--identity", pair.path)
    output = tmp_path / "by-hand"
    output.mkdir()
    by_hand(copies, int(is_rewrapped), output, key.path)
    tree = copies.tree
    digest = hashlib.sha256((output / "vda.raw").read_bytes()).hexdigest()
    assert digest == tree.states[tree.ids()[-1]]["vda"].digest
    manifest = json.loads((output / tree.ids()[-1] / "manifest.json").read_text())
    assert manifest["id"] == tree.ids()[-1]


def test_nothing_that_leaves_has_known_plaintext(
    lab: Lab,
    firmware: Path,  # noqa: F811
    command: Command,
    repository: Path,
    pair: KeyPair,
    tmp_path: Path,
) -> None:
    """Of the guest, its definition, its firmware's variables, and the manifests; a copy without age shows the marks."""
    name = "tellingname"
    machine = efi(lab, tmp_path, name)
    machine.handle.domain.create()
    marks = {"guest": b"KNOWN-GUEST-TEXT", "nvram": b"KNOWN-NVRAM-TEXT", "name": name.encode()}
    content = tmp_path / "content"
    content.write_bytes(marks["guest"] * 4096)
    machine.write("vda", f"write -s {content} 64k 64k")
    nvram_of(machine).write_bytes(marks["nvram"] * 32 * 1024)
    for more in ((), ("--compress", "zstd")):
        command("-c", lab.uri, "-q", "backup", name, "-r", repository, *more)
    machine.write("vda", f"write -s {content} 1M 64k")
    command("-c", lab.uri, "-q", "backup", name, "-r", repository)
    plain, sealed = tmp_path / "plain", tmp_path / "sealed"
    command("-q", "copy", name, "-r", repository, "--to", plain)
    command("-q", "copy", name, "-r", repository, "--to", sealed, "--recipient", pair.recipient)
    found = {mark for mark, text in marks.items() if any(text in data for data in all_files(plain))}
    assert found == set(marks)
    for data in all_files(sealed):
        for text in (
            *marks.values(),
            b"<domain type",
            b"vda.qcow2",
            b"vbackup.manifest",
            str(tmp_path).encode(),
            b"AGE-SECRET-KEY",
        ):
            assert text not in data
        assert pair.recipient.encode() not in data
    output = tmp_path / "out"
    words = ("--from", sealed, "--identity", pair.path, "--cache", tmp_path / "cache")
    command("-q", "restore", name, *words, "--output", output)
    assert (output / "nvram").read_bytes() == marks["nvram"] * 32 * 1024
    machine.destroy()
    compare(output / "vda.qcow2", tmp_path / "vda.qcow2")


def all_files(directory: Path) -> Iterator[bytes]:
    for path in directory.rglob("*"):
        if path.is_file():
            yield path.read_bytes()


@pytest.mark.parametrize("is_sealed", [False, True])
def test_immutable_points_stay_until_their_days_are_over(copies: Copies, pair: KeyPair, is_sealed: bool) -> None:
    try:
        immutable.refuse_impossible(copies.tmp_path)
    except StorageError as err:
        pytest.skip(str(err))
    to = ("--recipient", pair.recipient) if is_sealed else ()
    try:
        copies.copy("--immutable", "3", *to)
        files = [path for path in (copies.target / copies.tree.uuid).rglob("*") if path.is_file()]
        assert len(files) == 18
        for path in files:
            with pytest.raises(PermissionError):
                path.unlink()
        words = ("prune", "web", "--at", copies.target, "--remove", copies.tree.ids()[-1])
        opened = ("--identity", pair.path, "--cache", copies.new_path()) if is_sealed else ()
        copies.command(*words, *opened, status=6)  # the newest is never removed
        last = copies.tree.ids()[-1]
        states = {dev: state.changed({12: (4, 2)}) for dev, state in copies.tree.states[last].items()}
        copies.tree.backup(states)
        copies.copy(*to)
        outcome = copies.command("prune", "web", "--at", copies.target, "--keep-last", "1", *opened)
        assert "does not allow" in outcome.stdout
        copies.check(*opened[:2])
        assert len(list((copies.target / copies.tree.uuid).iterdir())) == 4
    finally:
        subprocess.run(["chattr", "-R", "-i", copies.target], check=True)
