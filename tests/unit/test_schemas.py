"""Every document has a schema, every schema describes what it names, and nothing is printed or kept beside it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator

import vbackup
from tests import documents
from tests.compatible import KEPT
from tests.documents import resolved
from tests.recorded import Recorded
from tests.unit.builders import (
    NOON,
    REPOSITORY,
    TRACKER,
    UUID,
    backup,
    backup_id,
    live_state_in,
    pull_session,
    session_checkpoint,
)
from vbackup import schemas
from vbackup.cli.context import Context
from vbackup.cli.reporters import JsonLines
from vbackup.copies import target as targets
from vbackup.layers import ChainState, FileState, LayerState
from vbackup.model import Group, GroupMember, Level
from vbackup.names import Naming
from vbackup.repository import (
    audited,
    boot_result,
    fsck_result,
    in_place_journal,
    journal,
    live_state,
    protection,
    restored,
    standbys,
    stream_record,
    verification,
)
from vbackup.repository.audited import Audited
from vbackup.repository.boot_result import BootResult
from vbackup.repository.fsck_result import CheckedFileSystem, FsckResult
from vbackup.repository.history import RestoredDisk
from vbackup.repository.in_place_journal import Replaced, Seen, Step
from vbackup.repository.journal import Journal
from vbackup.repository.merge_journal import MergeJournal
from vbackup.repository.protection import Protection
from vbackup.repository.standbys import Record as Standby
from vbackup.repository.stream_record import StreamRecord
from vbackup.repository.verification import Verdict, Verification
from vbackup.sessions.trackers import Tracker
from vbackup.stores.age_keys import Identity
from vbackup.stores.directory import DirectoryStore
from vbackup.stores.sealed import Keys

if TYPE_CHECKING:
    from tests.conftest import Command

PACKAGE = Path(vbackup.__file__).parent
TOP = PACKAGE.parent
FILES = sorted((PACKAGE / "schemas").glob("*.json"))
KNOWN = schemas.known()


def in_sources() -> set[str]:
    """The kinds of documents that the code names."""
    sources = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    return set(re.findall(r'"(vbackup\.[a-z-]+/[0-9]+)"', sources))


def test_every_kind_of_document_has_a_schema_and_every_schema_a_document() -> None:
    # The docstring of vbackup.schemas has an example, which is a document.
    assert in_sources() == set(KNOWN)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_is_a_schema_of_the_draft_that_it_names(path: Path) -> None:
    schema = json.loads(path.read_text())
    assert schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("name", KNOWN)
def test_schema_is_of_the_document_of_its_name(name: str) -> None:
    schema = schemas.load(name)
    # Each line of a journal is a document, of which only the first says what it is.
    assert schema["properties"]["schema"]["const"] == name
    assert ("schema" in schema["required"]) == (name != "vbackup.journal/1")
    assert schemas.title(name) == schema["title"]
    Draft202012Validator.check_schema(schema)
    assert "common.json" not in json.dumps(schema)


def test_definition_is_used() -> None:
    used = {key for name in KNOWN for key in schemas.load(name).get("$defs", {})}
    common = json.loads((PACKAGE / "schemas" / "common.json").read_text())["$defs"]
    assert common.keys() <= used


def parts(schema: dict[str, Any], where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each schema of a value in a schema, and where it is."""
    yield where, schema
    for name in ("properties", "$defs"):
        for key, value in schema.get(name, {}).items():
            yield from parts(value, f"{where}/{name}/{key}")
    for name in ("items", "additionalProperties", "if", "then", "else"):
        if name in schema:
            yield from parts(schema[name], f"{where}/{name}")
    for name in documents.IN_PLACE:
        for index, value in enumerate(schema.get(name, ())):
            yield from parts(value, f"{where}/{name}/{index}")


@pytest.mark.parametrize("name", KNOWN)
def test_every_member_is_described_with_its_unit(name: str) -> None:
    schema = schemas.load(name)
    for where, part in parts(schema):
        for member, value in part.get("properties", {}).items():
            if where.endswith(("/if", "/then")):  # of a member that is described without the condition
                continue
            text = description(value, schema)
            assert text.endswith("."), f"{where}: {member} is not described: {text!r}"
            for ending, unit in UNITS.items():
                if member.endswith(ending):
                    assert re.search(unit, text, re.I), f"{where}: {member}: {text}"


#: What a member of such a name has in its description.
UNITS = {"_bytes": "byte", "_ms": "milliseconds", "_s": "seconds?", "percent": "percent", "_ns": "nanoseconds"}


def description(schema: dict[str, Any], root: dict[str, Any]) -> str:
    if "description" in schema:
        return str(schema["description"])
    return description(resolved(schema["$ref"], root), root) if "$ref" in schema else ""


@pytest.mark.parametrize("name", KNOWN)
def test_value_has_a_type_and_a_list_its_items(name: str) -> None:
    schema = schemas.load(name)
    for where, part in parts(schema):
        if "/if/" in where or where.endswith(("/if", "/then")) or "/allOf/" in where or "required" in part:
            continue
        assert {"type", "enum", "const", "$ref", "anyOf"} & part.keys(), where
        if part.get("type") == "array":
            assert "items" in part, where


# nothing that is not described


def test_what_the_schema_does_not_describe_is_found() -> None:
    document = {"schema": "vbackup.umount/1", "directory": "/m", "was_dead": False}
    documents.check(document)
    for wrong in (
        {**document, "weather": "fine"},
        {**document, "was_dead": "no"},
        {"schema": "vbackup.umount/1", "directory": "/m"},
        {**document, "schema": "vbackup.weather/1"},
    ):
        with pytest.raises(AssertionError, match=r"vbackup/schemas"):
            documents.check(wrong)


@pytest.mark.parametrize("words", [["vbackup", "list", "--json"], ["/usr/bin/vbackup", "list", "--json"]])
def test_process_that_a_test_waits_for_is_checked_too(words: list[str]) -> None:
    def printing(document: str, *arguments: str) -> list[str]:
        return [sys.executable, "-c", f"import sys; print({document!r}, file=sys.stdout)", *arguments]

    with pytest.raises(AssertionError, match="weather"):
        subprocess.run(printing('{"schema": "vbackup.weather/1"}', *words), capture_output=True, check=True)
    with pytest.raises(AssertionError, match="weather"):
        subprocess.run(printing('frozen\n{"schema": "vbackup.weather/1"}', *words), stdout=subprocess.PIPE, check=True)
    subprocess.run(printing('{"schema": "vbackup.weather/1"}', *words[:-1]), capture_output=True, check=True)
    subprocess.run(printing('{"schema": "vbackup.weather/1"}', "ls", "--json"), capture_output=True, check=True)


def test_what_a_test_prints_by_itself_is_checked_too(capfd: pytest.CaptureFixture[str]) -> None:
    Context.print_document(object(), "vbackup.umount/1", {"directory": "/m", "was_dead": False})  # type: ignore[arg-type]
    assert capfd.readouterr().out
    Context.print_stream(object(), "vbackup.weather/1", {}, "days", [{}])  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="weather"):
        capfd.readouterr()


def test_document_that_has_to_be_there_is_missed() -> None:
    documents.check_output("")
    for stdout in ("", "Done.\n"):
        with pytest.raises(AssertionError, match="printed no document"):
            documents.check_output(stdout, is_there=True)


def test_events_are_checked(command: Command, recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("verify", "web", "-r", recorded.repository.path, "--progress", "json", "--sample", "1")
    assert '"event": "progress"' in command(*arguments).stderr
    event = JsonLines._event
    monkeypatch.setattr(JsonLines, "_event", lambda self, name, **more: event(self, name, **more, weather="fine"))
    with pytest.raises(AssertionError, match="weather"):
        command(*arguments)


def test_reader_accepts_what_a_newer_vbackup_adds() -> None:
    error = {
        "schema": "vbackup.error/1",
        "code": "TOMORROW",
        "message": "It rains.",
        "status": 1,
        "retry": "never",
        "details": {"rain_mm": 3},
        "error": "TomorrowError",
        "evidence": {"rain_mm": 3},
        "weather": "fine",
    }
    Draft202012Validator(schemas.load("vbackup.error/1")).validate(error)
    with pytest.raises(AssertionError):
        documents.check(error)


@pytest.mark.parametrize("at", ["", "/domains", "/domains/0/backup", "/domains/0/backup/disks/0/chain/layers/0/file"])
def test_object_is_closed_wherever_it_is(at: str, untouched: Recorded) -> None:
    made = {**kept_in(untouched.repository.path)["vbackup.manifest/1"], "schema": "vbackup.backup/1"}
    del made["digest"]
    made["disks"][0]["chain"] = {
        "device_mark": None,
        "boot_id": None,
        "layers": [{"node_name": "n", "file": {"path": "/a"}}],
    }
    of_several = {
        "schema": "vbackup.backups/1",
        "domains": [{"name": "a", "uuid": None, "duration_s": 1.5, "backup": made}],
        "left_out": [],
        "unmatched": [],
        "done": 1,
        "failed": 0,
        "group": None,
        "duration_s": 1.5,
    }
    documents.check(of_several)
    part: Any = of_several
    for word in at.split("/")[1:]:
        part = part[int(word) if word.isdecimal() else word]
    if isinstance(part, list):
        part[0]["weather"] = "fine"
    else:
        part["weather"] = "fine"
    with pytest.raises(AssertionError, match="weather"):
        documents.check(of_several)


# files


def kept_in(directory: Path) -> dict[str, dict[str, Any]]:
    """The documents in the files below a directory, by their kind; the last of each."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and (path.suffix == ".json" or path.name in ("protected", "journal")):
            document = json.loads(path.read_text().splitlines()[0] if path.name == "journal" else path.read_text())
            if "schema" in document:  # domain.json has none
                found[document["schema"]] = document
    return found


def test_files_of_a_repository_are_as_described(untouched: Recorded) -> None:
    found = kept_in(untouched.repository.path)
    assert found.keys() == {"vbackup.repository/1", "vbackup.manifest/1"}
    for document in found.values():
        documents.check(document)


def test_files_of_an_older_vbackup_are_as_described() -> None:
    found = kept_in(TOP / "tests" / "fixtures" / "old" / "repository")
    assert found.keys() >= {"vbackup.repository/1", "vbackup.manifest/1", "vbackup.journal/1"}
    for document in found.values():
        documents.check(document)


def write_everything(directory: Path) -> None:
    """Write every kind of file that is in no ``recorded`` repository, with whatever can be in it."""
    verification.write(directory, Verification(NOON, Verdict.GOOD, 100.0, 1))
    boot_result.write(directory, BOOTED, b"picture")
    fsck_result.write(directory, FsckResult(NOON, ("vda",), (CheckedFileSystem("vda/1", "ext4", "clean"),), 1.5))
    protection.protect(directory, Protection(NOON, "reason"))
    audited.add(directory, [Audited("vda", NOON, backup_id(1), False, 4, 3, 2, frozenset((backup_id(1),)))])
    chain = ChainState((LayerState("n", FileState("/a", 1, 2, 3, 4, 5, "d"), FileState("/b")),), "mark", "boot")
    bitmap = Naming(REPOSITORY).bitmap(backup_id(1), "vda", "0" * 12)
    restored.add(directory, [RestoredDisk("vda", backup_id(1), bitmap, 1 << 20, 1, chain)])
    replaced = Replaced("vda", Path("/a"), backup_id(1), True, Seen(1, 2, 3), None)
    in_place_journal.write(
        directory,
        Step.ROLLING,
        backup=backup_id(1),
        disks=[replaced],
        rolled=["vdb"],
        host="hv1",
        uri="qemu+ssh://hv1/",
    )
    with MergeJournal(directory, [backup_id(1)]) as written:
        written.set_in_place([backup_id(1)])
    live_state.write(live_state_in(directory, "vda"))
    standbys.put(directory, Standby("qemu:///system", Path("/a"), backup_id(1), NOON, backup_id(2), NOON))
    streamed = StreamRecord("job 7", Level.AUTO, "2026.11.23.10.15.00")
    (directory / stream_record.NAME).write_bytes(stream_record.data(streamed))
    tracker = Tracker(TRACKER, "web", UUID, (session_checkpoint(1, "vda"),), 1)
    (directory / "tracker-x.json").write_text(json.dumps(tracker.document()))
    (directory / "session-x.json").write_text(json.dumps(pull_session("vda").record()))
    (directory / "target").mkdir()
    sealed = Keys((Identity(bytes(range(32))).recipient,))
    targets.opened_for(DirectoryStore(directory / "target"), [REPOSITORY], create=True, keys=sealed)


BOOTED = BootResult(
    NOON, True, "It booted.", {"agent": True, "exec": "true", "console": None, "screen": False}, exec_status=-1
)


def test_every_other_kind_of_file_is_as_described(tmp_path: Path) -> None:
    write_everything(tmp_path)
    found = kept_in(tmp_path)
    others = {f"{kind}/1" for kind in KEPT - {"vbackup.repository", "vbackup.manifest", "vbackup.journal"}}
    assert found.keys() == others
    for document in found.values():
        documents.check(document)


def test_every_line_of_a_journal_is_as_described(tmp_path: Path) -> None:
    group = Group("0123456789ab", (GroupMember("web", UUID, "x"),))
    draft = backup(1, group=group)
    (tmp_path / draft.disks[0].file).touch()
    with Journal(tmp_path) as written:
        written.begin(draft)
        written.targets([draft.disks[0].file])
        written.moment(draft.time, guest_was_stopped=False)
        written.started(draft)
        written.take_over()
        written.copied({"vda": 65536})
        written.flushed()
        written.streamed()
    validator = Draft202012Validator(documents.strict(schemas.load("vbackup.journal/1")))
    lines = [json.loads(line) for line in (tmp_path / journal.JOURNAL).read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert set(steps) == {step.value for step in journal.Step} | {journal.TAKEN_OVER}
    for line in lines:
        validator.validate(line)
        # Each line has what its step needs: without it, the line is not valid.
        for member in line.keys() - {"step", "spread_ms", "identity", "directory"}:
            assert not validator.is_valid({name: value for name, value in line.items() if name != member})
