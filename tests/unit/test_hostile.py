"""A repository that is damaged or crafted to do harm is refused with one sentence, and nothing else is touched.

Real files are damaged in every way that we thought of, and in ways that hypothesis finds. The commands that read a
repository must then end with the right status, write nothing outside --output, and wait for nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.builders import FIXTURES, SIZE_BYTES, UUID, backup, fixture_xml, incremental, patience
from vbackup import archive
from vbackup.cli import main
from vbackup.domain import domain_xml, restored_xml
from vbackup.errors import ChainError, StorageError, VbackupError
from vbackup.fields import parse_json
from vbackup.model import Backup, ImageFormat, ImageOptions, MachineFile, MachineKind
from vbackup.qemu import qcow2, qemu_img
from vbackup.repository import manifest
from vbackup.repository.repository import Repository

if TYPE_CHECKING:
    from tests.conftest import Command

ONE = backup(1)
TWO = incremental(2, ONE)


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def seal(path: Path, one: Backup) -> None:
    """Write a manifest that matches the files, as an attacker who changed them would."""
    disks = tuple(
        replace(
            disk,
            file_size_bytes=(path / disk.file).stat().st_size,
            digest=digest((path / disk.file).read_bytes()),
        )
        for disk in one.disks
    )
    files = {"domain.xml": digest((path / "domain.xml").read_bytes())}
    tpm = (path / "tpm.tar").read_bytes()
    machine = (MachineFile(MachineKind.TPM, len(tpm), digest(tpm), "/swtpm"),)
    (path / "manifest.json").write_text(manifest.dump(replace(one, disks=disks, files=files, machine=machine)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a full and an incremental backup, with real files that match."""
    repository = Repository.create(tmp_path_factory.mktemp("hostile") / "repository")
    xml = fixture_xml("bitmaps")
    for one in (ONE, TWO):
        path = repository.directory(UUID, one.id)
        path.mkdir(parents=True)
        base = one.disks[0].base
        backing = f"../{base}/vda.qcow2" if base else None
        (path / "vda.qcow2").touch(mode=0o600)
        qemu_img.create(path / "vda.qcow2", SIZE_BYTES, backing_rpath=backing, options=ImageOptions())
        (path / "domain.xml").write_text(xml)
        (path / "tpm.tar").write_bytes(archive.pack({"tpm2-00.permall": b"keys"}))
        seal(path, one)
    (repository.path / UUID / "domain.json").write_text('{"names": ["web"]}\n')
    return repository.path


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage, beside a file that no command may touch."""
    return copy_of(made, tmp_path)


def copy_of(made: Path, directory: Path) -> Path:
    shutil.copytree(made, directory / "repository")
    (directory / "canary").write_text("the secret")
    return directory / "repository"


def snapshot(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything there except the output: type and mode, size, first bytes."""
    found = {}
    for path in directory.rglob("*"):
        if path.name != "output" and "output" not in path.relative_to(directory).parts:
            seen = path.lstat()
            regular = path.is_file() and not path.is_symlink()
            found[str(path)] = (seen.st_mode, seen.st_size if regular else 0, begin(path) if regular else b"")
    return found


def begin(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1 << 20)


def run(*arguments: str | Path) -> tuple[int, str]:
    """The command's status and what it said on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with patience(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([os.fspath(one) for one in arguments])
    said = err.getvalue()
    assert "the secret" not in out.getvalue() + said
    assert "Unexpected" not in said, said
    assert "Traceback" not in said
    return status, said


def outside(repository: Path, found: dict[str, Any]) -> dict[str, Any]:
    """The part of a snapshot that is not in the repository."""
    return {name: one for name, one in found.items() if not name.startswith(f"{repository}/")}


def check(repository: Path) -> dict[str, tuple[int, str]]:
    """Run every command that reads a repository, in all its forms."""
    directory = repository.parent
    before = snapshot(directory)
    answers = {
        "list": run("list", "--all", "-r", repository),
        "list --json": run("list", "-r", repository, "--json"),
        "tree": run("list", "-r", repository, "--tree"),
        "show": run("show", "web", "-r", repository),
        "show by uuid": run("show", UUID, "-r", repository, "--backup", ONE.id, "--json"),
        # Without a checkpoint it only reads the repository, too.
        "restore": run("-q", "restore", UUID, "-r", repository, "--output", directory / "output", "--no-checkpoint"),
    }
    if answers["restore"][0]:
        assert not (directory / "output").exists()
    else:
        assert {path.name for path in (directory / "output").iterdir()} <= {"domain.xml", "nvram", "tpm", "vda.qcow2"}
        shutil.rmtree(directory / "output")
    assert snapshot(directory) == before
    # It writes its result into the repository, and block lists; elsewhere nothing.
    answers["verify"] = run("-q", "verify", "--all", "-r", repository)
    assert outside(repository, snapshot(directory)) == outside(repository, before)
    for what, (status, said) in answers.items():
        assert status in (0, 4, 6, 7), (what, said)
        assert len(said) < 10_000, what
        errors = [line for line in said.splitlines() if not line.startswith("vbackup: warning:")]
        assert len(errors) <= 1, said
        assert said or not status, what
        # A restore that succeeds may say what the domain lacks.
        assert status or not said or (what == "restore" and not errors), (what, said)
    return answers


def test_what_nobody_damaged_is_restored(place: Path) -> None:
    assert {status for status, _ in check(place).values()} == {0}


# something else instead of a file

FILES = ("vbackup.json", f"{UUID}/domain.json", *(
    f"{UUID}/{one.id}/{name}" for one in (ONE, TWO) for name in ("manifest.json", "domain.xml", "tpm.tar", "vda.qcow2")
))  # fmt: skip


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link_to_zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_canary(path: Path) -> None:
    path.symlink_to(next(one for one in path.parents if one.name == "repository").parent / "canary")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def bind(path: Path) -> None:
    # The path may be too long for a socket; a path through a descriptor is not.
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(f"/proc/self/fd/{fd}/{path.name}")
    os.close(fd)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 42)


def device(path: Path) -> None:
    try:
        os.mknod(path, 0o20600, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("only root makes devices")


IMPOSTORS: list[Callable[[Path], None]] = [
    fifo, link_to_zero, link_to_canary, link_to_itself, bind, sparse, device, Path.mkdir, Path.touch
]  # fmt: skip


@pytest.mark.parametrize("impostor", IMPOSTORS, ids=lambda one: one.__name__)
@pytest.mark.parametrize("name", FILES)
def test_impostor_is_refused(place: Path, name: str, impostor: Callable[[Path], None]) -> None:
    path = place / name
    path.unlink()
    impostor(path)
    answers = check(place)
    if name == "vbackup.json":
        assert {status for status, _ in answers.values()} == {7}
    elif name.endswith("domain.json"):
        assert (answers["list"][0], answers["show"][0], answers["restore"][0]) == (0, 4, 0)
    elif name.endswith((f"{ONE.id}/domain.xml", f"{ONE.id}/tpm.tar")):
        assert answers["restore"][0] == 0  # those of the other backup are used
    else:
        assert answers["restore"][0] == 6


PRUNED_FILES = (*FILES[1:], *(
    f"{UUID}/{one.id}/{name}" for one in (ONE, TWO) for name in ("protected", "note", "vda.blocks")
), f"{UUID}/merge.json", f"{UUID}/.removed-{ONE.id}", f"{UUID}/.merge-{TWO.id}")  # fmt: skip


@pytest.mark.parametrize("impostor", [fifo, link_to_canary, Path.mkdir, sparse], ids=lambda one: one.__name__)
@pytest.mark.parametrize("name", PRUNED_FILES)
def test_prune_follows_no_impostor_and_removes_nothing_that_is_broken(
    place: Path, name: str, impostor: Callable[[Path], None]
) -> None:
    """There is nothing to remove: the newest depends on the other."""
    path = place / name
    path.unlink(missing_ok=True)
    impostor(path)
    outside = {one: begin(one) for one in place.parent.iterdir() if one.is_file()}
    for more in (("--dry-run",), (), ("--consolidate", "never")):
        status, said = run("-q", "prune", "--all", "--keep-last", "1", "-r", place, *more)
        assert status in (0, 3, 6, 7), said
        assert sorted(one.name for one in (place / UUID).glob("2*")) in ([ONE.id, TWO.id], [TWO.id])
        if name.endswith(("manifest.json", "protected", "vda.qcow2")):
            assert (place / UUID / ONE.id).exists()
    assert {one: begin(one) for one in place.parent.iterdir() if one.is_file()} == outside


@pytest.mark.parametrize("kind", [fifo, link_to_zero, Path.mkdir], ids=lambda one: one.__name__)
def test_impostor_of_the_recorded_size_is_no_image(place: Path, kind: Callable[[Path], None]) -> None:
    """What is not a file has a size too."""
    directory = place / UUID / TWO.id
    (directory / "vda.qcow2").unlink()
    kind(directory / "vda.qcow2")
    size_bytes = (directory / "vda.qcow2").stat().st_size
    disk = replace(TWO.disks[0], file_size_bytes=size_bytes)
    (directory / "manifest.json").write_text(manifest.dump(replace(TWO, disks=(disk,))))
    answers = check(place)
    assert (answers["list"][0], answers["restore"][0]) == (6, 6)


@pytest.mark.parametrize("name", [UUID, f"{UUID}/{ONE.id}"])
def test_directory_that_is_a_link_is_not_followed(place: Path, name: str) -> None:
    path = place / name
    path.rename(place.parent / "elsewhere")
    path.symlink_to(place.parent / "elsewhere")
    answers = check(place)
    assert answers["restore"][0] == (7 if name == UUID else 6)


def test_domain_that_is_a_link_is_not_written_to(place: Path) -> None:
    (place / UUID).rename(place.parent / "elsewhere")
    (place / UUID).symlink_to(place.parent / "elsewhere")
    before = snapshot(place.parent)
    with pytest.raises(StorageError, match="is a symbolic link"), Repository.open(place).lock(UUID):
        pass
    assert snapshot(place.parent) == before


@pytest.mark.parametrize("impostor", IMPOSTORS, ids=lambda one: one.__name__)
def test_lock_that_is_no_file_is_told(place: Path, impostor: Callable[[Path], None]) -> None:
    impostor(place / UUID / "lock")
    repository = Repository.open(place)
    if (place / UUID / "lock").lstat().st_mode & 0o170000 == 0o100000:
        with repository.lock(UUID):
            return
    with patience(), pytest.raises(StorageError, match="not a regular file"), repository.lock(UUID):
        pass
    assert (place.parent / "canary").read_text() == "the secret"


@pytest.mark.parametrize("trap", [fifo, link_to_canary, Path.touch], ids=lambda one: one.__name__)
def test_trap_for_the_new_name_is_stepped_over(place: Path, trap: Callable[[Path], None]) -> None:
    trap(place / UUID / f".domain.json.{os.getpid()}")
    with patience():
        Repository.open(place).remember_name(UUID, "new")
    assert json.loads((place / UUID / "domain.json").read_text())["names"] == ["web", "new"]
    assert (place.parent / "canary").read_text() == "the secret"


# domain.xml


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "<domain>",
        "<network/>",
        "<!DOCTYPE domain [<!ENTITY a 'aaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;'>]><domain><name>&b;</name></domain>",
        "<!DOCTYPE domain [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><domain><name>&x;</name></domain>",
        "<!DOCTYPE domain SYSTEM 'http://127.0.0.1:1/x.dtd'><domain/>",
        "<domain><devices><disk><target dev='../../x'/></disk></devices></domain>",
        "<domain>" * 5000,
    ],
    ids=lambda xml: xml[:40],
)
def test_domain_xml_that_is_none_is_refused(place: Path, xml: str) -> None:
    path = place / UUID / TWO.id
    (path / "domain.xml").write_text(xml)
    seal(path, TWO)
    status, said = check(place)["restore"]
    assert status == 6
    assert f"The domain.xml of backup {TWO.id} is not valid" in said


def test_backup_without_a_domain_xml_is_refused(place: Path) -> None:
    path = place / UUID / TWO.id / "manifest.json"
    path.write_text(manifest.text_of({**json.loads(path.read_text()), "files": {}}))
    status, said = check(place)["restore"]
    assert (status, "lists no domain.xml" in said) == (6, True)


@pytest.mark.parametrize("name", ["a\x01b", "a\udcffb"], ids=ascii)
def test_output_that_no_xml_can_name_is_a_usage_error(place: Path, name: str) -> None:
    status, said = run("-q", "restore", UUID, "-r", place, "--output", place.parent / name)
    assert (status, "choose another directory" in said) == (2, True)
    assert not (place.parent / name).exists()


# manifest.json


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"time": "9999-12-31T23:59:59+00:00"}, "cannot be the time of a backup"),
        ({"time": "0001-01-01T12:00:00+00:00"}, "cannot be the time of a backup"),
        ({"id": "x" * 1_000_000}, "is left out"),
        ({"sequence": 10**600}, "should be an integer from 0"),
    ],
)
def test_absurd_value_is_refused_in_a_short_sentence(
    place: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str
) -> None:
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    path = place / UUID / TWO.id / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    answers = check(place)
    assert {answers[what][0] for what in ("list", "show", "restore")} == {6}
    assert said in answers["restore"][1]


def test_number_of_a_million_digits_is_not_computed(place: Path) -> None:
    path = place / UUID / TWO.id / "manifest.json"
    path.write_text(path.read_text().replace('"sequence": 2', '"sequence": ' + "9" * 1_000_000))
    assert "a number of 1000000 digits" in check(place)["restore"][1]
    assert parse_json("-12") == -12


# qcow2


def patched(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def name_backing(name: str) -> Callable[[Path], None]:
    def patch(path: Path) -> None:
        patched(path, 0x3F0, name.encode())
        patched(path, 8, struct.pack(">QI", 0x3F0, len(name)))

    return patch


def name_data_file(path: Path) -> None:
    """Make the image name another file for its data, which QEMU would open (CVE-2024-4467)."""
    name = f"{path.parents[3]}/canary"
    extension = struct.pack(">II", 0x44415441, len(name)) + name.encode().ljust((len(name) + 7) // 8 * 8, b"\0")
    patched(path, 72, struct.pack(">Q", 1 << 2))
    patched(path, 112, extension + bytes(8))  # the end of all extensions


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (name_backing("/etc/passwd"), "names the backing file '/etc/passwd'"),
        (name_backing('json:{"driver":"nbd"}'), "names the backing file 'json:"),
        (name_backing(f"../{TWO.id}/vda.qcow2"), "names the backing file"),
        (name_data_file, "keeps its data in another file"),
        (lambda path: patched(path, 72, struct.pack(">Q", 1 << 2)), "keeps its data in another file"),
        (lambda path: patched(path, 24, struct.pack(">Q", 1 << 60)), "is an image of"),
        (lambda path: patched(path, 32, struct.pack(">I", 2)), "is encrypted"),
        (lambda path: patched(path, 0, b"QFI\xfa"), "is not a qcow2 image"),
        (lambda path: patched(path, 4, struct.pack(">I", 4)), "is not a qcow2 image"),
        (lambda path: patched(path, 20, struct.pack(">I", 60)), "is not a qcow2 image"),
        (lambda path: patched(path, 100, struct.pack(">I", 8)), "is not a qcow2 image"),
        (lambda path: patched(path, 8, struct.pack(">QI", 1 << 40, 9)), "is not a qcow2 image"),
        (lambda path: patched(path, 8, struct.pack(">QI", 0x3F0, 5000)), "is not a qcow2 image"),
        (lambda path: os.truncate(path, 50), "is not a qcow2 image"),
        (lambda path: os.truncate(path, 0), "is not a qcow2 image"),
    ],
)
def test_header_is_refused_before_qemu_sees_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None], said: str
) -> None:
    def no_process(*_arguments: object, **_options: object) -> None:
        raise AssertionError("a program was started")

    path = place / UUID / ONE.id
    damage(path / "vda.qcow2")
    seal(path, ONE)
    monkeypatch.setattr(subprocess, "Popen", no_process)
    status, told = check(place)["restore"]
    assert (status, said in told) == (6, True), told


# damage that hypothesis generates

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(
        ["../../canary", "/etc/passwd", "\x1b[2J", "\0", "\ud800", UUID, ONE.id, TWO.id, 2**63, -1, 10**400, "vda"]
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


def mutate_json(data: st.DataObject, path: Path) -> None:
    """Replace or remove a value somewhere inside."""
    document = json.loads(path.read_text())
    inner = document
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        if isinstance(inner[key], (dict, list)) and inner[key] and data.draw(st.integers(0, 3)):
            inner = inner[key]
            continue
        break
    if isinstance(inner, dict) and data.draw(st.booleans()):
        del inner[key]
    else:
        inner[key] = data.draw(JUNK)
    path.write_text(json.dumps(document))


def mutate_bytes(data: st.DataObject, path: Path) -> None:
    """Write random bytes near the beginning, where the headers are."""
    old = path.read_bytes()
    at, length = data.draw(st.integers(0, min(len(old), 600))), data.draw(st.integers(0, 16))
    new = data.draw(st.binary(max_size=16) | st.integers(0, 2**64 - 1).map(lambda number: number.to_bytes(8, "big")))
    path.write_bytes(old[:at] + new + old[at + (length if path.suffix != ".qcow2" else len(new)) :])


def mutate_xml(data: st.DataObject, path: Path) -> None:
    path.write_text(mutated_xml(data, path.read_text()))


def mutated_xml(data: st.DataObject, xml: str) -> str:
    """Remove, repeat, swap or change pieces between tags."""
    pieces = xml.split("<")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(pieces) - 1))
        kind = data.draw(st.sampled_from(["drop", "double", "swap", "text", "attribute"]))
        if kind == "drop":
            del pieces[at]
        elif kind == "double":
            pieces.insert(at, pieces[at])
        elif kind == "swap":
            other = data.draw(st.integers(0, len(pieces) - 1))
            pieces[at], pieces[other] = pieces[other], pieces[at]
        elif kind == "text":
            pieces[at] += data.draw(st.text(max_size=5) | st.sampled_from(["&x;", "]]>", "<!--", "<?x?>", "<![CDATA["]))
        else:
            pieces[at] = pieces[at].replace("'", data.draw(st.sampled_from(["", '"', "'../x'", "'\0"])), 1)
        if not pieces:
            return ""
    return "<".join(pieces)


@settings(max_examples=60)
@given(st.data())
def test_any_damage_ends_in_an_honest_status(made: Path, data: st.DataObject) -> None:
    """In half of the cases the manifest is adapted, so that the checks after the digests are reached."""
    with tempfile.TemporaryDirectory(prefix="vb-") as directory:
        repository = copy_of(made, Path(directory))
        for _ in range(data.draw(st.integers(1, 2))):
            path = repository / data.draw(st.sampled_from(FILES))
            ways: list[Callable[[st.DataObject, Path], None]] = [mutate_bytes]
            ways += [mutate_json] if path.suffix == ".json" else [mutate_xml] if path.suffix == ".xml" else []
            try:
                data.draw(st.sampled_from(ways))(data, path)
            except (ValueError, UnicodeError):
                continue  # the first damage leaves nothing for the second
            if path.suffix != ".json" and data.draw(st.booleans()):
                seal(path.parent, ONE if path.parent.name == ONE.id else TWO)
        check(repository)


@settings(max_examples=200)
@given(st.data())
def test_any_damage_to_a_captured_xml_is_refused_as_ours_or_harmless(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(path.parent.name for path in FIXTURES.glob("*/domain.xml"))))
    xml = mutated_xml(data, fixture_xml(name))
    with contextlib.suppress(VbackupError):
        domain = domain_xml.parse(xml)
        assert all("/" not in disk.dev for disk in domain.disks)
    with contextlib.suppress(VbackupError):
        domain_xml.with_disks(xml, {})
    with contextlib.suppress(VbackupError):
        live = data.draw(st.sampled_from([None, xml, fixture_xml(name)]))
        reworked = restored_xml.rework(xml, live, {"vda": None}, output="/out", keep_others=data.draw(st.booleans()))
        domain_xml.with_disks(reworked.text, {"vda": ("/out/vda.raw", ImageFormat.RAW)}, nvram_path="/out/nvram")


@settings(max_examples=200)
@given(st.data())
def test_any_header_is_refused_as_ours_or_harmless(made: Path, data: st.DataObject) -> None:
    source = made / UUID / data.draw(st.sampled_from([ONE.id, TWO.id])) / "vda.qcow2"
    with tempfile.TemporaryDirectory(prefix="vb-") as directory:
        path = Path(directory) / "vda.qcow2"
        path.write_bytes(begin(source)[:1200])
        for _ in range(data.draw(st.integers(1, 4))):
            mutate_bytes(data, path)
        with contextlib.suppress(ChainError):
            found = qcow2.header(path)
            assert 0 <= found.virtual_size_bytes < 2**64


@pytest.mark.parametrize(
    "argv",
    [
        ("restore", "web", "--output", "DIR"),
        ("mount", "web", "DIR", "--foreground"),
        ("serve", "web", "--nbd", "DIR"),
        ("serve", "web", "--nbd", "SOCKET", "--writable", "--overlay", "DIR"),
        ("cp", "web", "/etc/fstab", "DIR"),
    ],
    ids=" ".join,
)
def test_nothing_else_is_written_into_a_repository(
    command: Command, place: Path, tmp_path: Path, argv: tuple[str, ...]
) -> None:
    before = snapshot(place)
    words = {"DIR": place / "new", "SOCKET": tmp_path / "socket"}
    outcome = command(*(words.get(word, word) for word in argv), "-r", place, status=7)
    assert "where only backups belong: nothing was written" in outcome.stderr
    assert snapshot(place) == before
