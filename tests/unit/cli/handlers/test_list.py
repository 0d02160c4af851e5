"""``vbackup list`` shows every backup, broken ones too, as a table, a tree or a document."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.builders import UUID, backup, commit, image, incremental
from vbackup.cli import backup_table, output
from vbackup.cli.commands import list as list_command
from vbackup.model import EXCLUDED, Backup, ChangeRecord, HostIdentity, LeftOut
from vbackup.process import Process
from vbackup.repository import manifest, notes, protection, verification
from vbackup.repository.condition import State
from vbackup.repository.journal import Journal
from vbackup.repository.protection import Protection
from vbackup.repository.repository import Repository
from vbackup.repository.verification import Verdict, Verification
from vbackup.repository.writer import Writer

if TYPE_CHECKING:
    from tests.conftest import Command


ONE = backup(1)
TWO = incremental(2, ONE)
THREE_ID = "20261124T101500Z-incremental"


def test_empty_repository_is_told(command: Command, repository: Path) -> None:
    assert command("list", "-r", repository).stdout == f"No backups in {repository} yet.\n"
    document = command("list", "-r", repository, "--json").document
    assert (document["schema"], document["domains"], document["backups"]) == ("vbackup.list/1", [], [])


@pytest.mark.parametrize("which", ["web", "--all"])
def test_list_has_a_line_for_each_backup(command: Command, filled: Path, which: str) -> None:
    lines = command("list", "-r", filled, which).stdout.splitlines()
    assert lines[0] == f"Domain web ({UUID})"
    assert [line.split()[0] for line in lines[2:]] == [ONE.id, TWO.id]
    assert "\x1b" not in "".join(lines)
    assert max(map(len, lines)) <= 80


def test_domain_and_all_are_a_contradiction(command: Command, filled: Path) -> None:
    assert "not both" in command("list", "-r", filled, "web", "--all", status=2).stderr


def test_without_a_domain_there_is_a_line_for_each_sorted_by_name(command: Command, filled: Path) -> None:
    repository = Repository.open(filled)
    for number, name in enumerate(("zoo", "ant"), start=2):
        commit(repository, replace(ONE, domain_uuid=f"f0000000-0000-4000-8000-00000000000{number}", domain_name=name))
    (filled / UUID / f"{THREE_ID}.partial").mkdir()
    (filled / "f0000000-0000-4000-8000-000000000003" / ONE.id / "manifest.json").write_text("{")
    outcome = command("list", "-r", filled, status=6)
    heading, *lines = outcome.stdout.splitlines()
    assert heading.split() == ["DOMAIN", "NEWEST", "AGE", "BACKUPS", "SIZE", "STATE"]
    assert [line.split()[0] for line in lines] == ["ant", "web", "zoo"]
    assert [line.endswith(end) for line, end in zip(lines, ("1 broken", " unfinished", "ok"))] == [True] * 3
    newest = TWO.time.astimezone().strftime("%Y-%m-%d %H:%M")
    assert re.search(rf"{newest} +\d+ d +2 +{output.size(ONE.size_bytes + TWO.size_bytes)} ", lines[1])
    domains = command("list", "-r", filled, "--json", status=6).document["domains"]
    assert [(one["name"], one["newest"], one["backups"], one["broken"], one["unfinished"]) for one in domains] == [
        ("ant", None, 0, 1, []),
        ("web", TWO.id, 2, 0, [THREE_ID]),
        ("zoo", ONE.id, 1, 0, []),
    ]


def test_backup_that_is_running_is_told_from_one_that_was_interrupted(
    command: Command, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        process = Process.of(child.pid)
        assert process is not None
        writer = replace(Writer.this(), process=process)
        stage = filled / UUID / f"{THREE_ID}.partial"
        stage.mkdir()
        with monkeypatch.context() as patch, Journal(stage) as written:
            patch.setattr(Writer, "this", lambda: writer)
            written.begin(replace(TWO, id=THREE_ID))
        assert command("list", "-r", filled).stdout.splitlines()[-1].endswith(" running")
        assert command("list", "-r", filled, "web").stdout.splitlines()[-1] == f"Running: {THREE_ID}"
        [domain] = command("list", "-r", filled, "--json").document["domains"]
        assert (domain["unfinished"], domain["running"]) == ([THREE_ID], [THREE_ID])
        child.kill()
    assert command("list", "-r", filled).stdout.splitlines()[-1].endswith(" unfinished")
    assert command("list", "-r", filled, "--tree").stdout.splitlines()[-1] == f"Unfinished: {THREE_ID}"
    [domain] = command("list", "-r", filled, "--json").document["domains"]
    assert (domain["unfinished"], domain["running"]) == ([THREE_ID], [])


def test_domain_of_which_nothing_is_committed_has_no_empty_table(command: Command, repository: Path) -> None:
    (repository / UUID / f"{THREE_ID}.partial").mkdir(parents=True)
    assert command("list", "-r", repository, "--all").stdout == f"Domain {UUID} ({UUID})\nUnfinished: {THREE_ID}\n"


def test_namesakes_have_their_uuids_in_the_summary(command: Command, filled: Path) -> None:
    other = "f0000000-0000-4000-8000-000000000002"
    commit(Repository.open(filled), replace(ONE, domain_uuid=other))
    lines = command("list", "-r", filled).stdout.splitlines()[1:]
    assert {line.split("  ")[0] for line in lines} == {f"web ({UUID})", f"web ({other})"}


def test_tree_shows_what_stands_on_what(command: Command, filled: Path) -> None:
    lines = command("list", "-r", filled, "--tree").stdout.splitlines()
    assert lines[1].startswith(ONE.id)
    assert lines[2].startswith(f"↑ {TWO.id}")


def test_list_as_a_document(command: Command, filled: Path) -> None:
    document = command("list", "-r", filled, "web", "--json").document
    [domain] = document["domains"]
    assert (domain["uuid"], domain["name"], domain["names"], domain["hosts"]) == (UUID, "web", ["web"], [])
    assert document["broken"] == []
    assert [(one["id"], one["level"], one["parent"], one["disks"]) for one in document["backups"]] == [
        (ONE.id, "full", None, ["vda"]),
        (TWO.id, "incremental", ONE.id, ["vda"]),
    ]


def hosted(filled: Path, number: int, host: HostIdentity, **changes: Any) -> Backup:
    one = backup(number, host=host, **changes)
    commit(Repository.open(filled), one)
    return one


def test_host_is_shown_where_there_are_several(command: Command, filled: Path) -> None:
    one = hosted(filled, 3, HostIdentity("one", "1" * 32))
    assert "HOST" not in command("list", "--all", "-r", filled).stdout
    two = hosted(filled, 4, HostIdentity("two", None))
    lines = command("list", "--all", "-r", filled).stdout.splitlines()
    assert [line.split()[-2] for line in lines[1:]] == ["HOST", "-", "-", "one", "two"]
    tree = command("list", "-r", filled, "--tree").stdout.splitlines()
    assert [line.split()[-1] for line in tree[1:]] == ["-", "-", "one", "two"]
    document = command("list", "-r", filled, "--host", "1" * 32, "--json").document
    assert [entry["id"] for entry in document["backups"]] == [one.id]
    assert document["backups"][0]["host"] == {"name": "one", "machine_id": "1" * 32}
    assert two.id not in command("list", "-r", filled, "--host", "one").stdout
    assert "No backups of host three" in command("list", "-r", filled, "--host", "three").stdout


def test_summary_says_if_several_hosts_have_backups_of_a_domain(command: Command, filled: Path) -> None:
    hosted(filled, 3, HostIdentity("one", "1" * 32))
    assert command("list", "-r", filled).stdout.splitlines()[-1].endswith(" ok")
    hosted(filled, 4, HostIdentity("one.example.com", None))  # the same, reached from elsewhere
    assert command("list", "-r", filled).stdout.splitlines()[-1].endswith(" ok")
    hosted(filled, 5, HostIdentity("two", "2" * 32))
    assert command("list", "-r", filled).stdout.splitlines()[-1].endswith(" ok, 2 hosts")


def test_disks_that_a_backup_leaves_out_are_shown(command: Command, filled: Path) -> None:
    commit(Repository.open(filled), backup(3, left_out=(LeftOut("vdb", EXCLUDED), LeftOut("hda", "cdrom"))))
    assert command("list", "web", "-r", filled).stdout.splitlines()[-1].endswith("vda (without vdb)")
    document = command("list", "-r", filled, "--json").document
    assert [entry["excluded"] for entry in document["backups"]] == [[], [], ["vdb"]]


def test_broken_backup_is_listed_and_is_status_six(command: Command, filled: Path) -> None:
    (filled / UUID / ONE.id / "manifest.json").write_text("{")
    outcome = command("list", "-r", filled, "--all", status=6)
    assert TWO.id in outcome.stdout
    assert f"vbackup: warning: Backup {ONE.id} is broken" in outcome.stderr
    broken = command("list", "-r", filled, "--json", status=6).document["broken"]
    assert {one["id"] for one in broken} == {ONE.id, TWO.id}


def test_two_domains_of_one_name_are_told_apart_by_uuid(command: Command, filled: Path) -> None:
    other = "f0000000-0000-4000-8000-000000000002"
    commit(Repository.open(filled), replace(ONE, domain_uuid=other))
    listed = command("list", "web", "-r", filled).stdout
    assert UUID in listed
    assert other in listed
    assert len(command("list", "web", "-r", filled, "--json").document["domains"]) == 2
    assert ONE.id in command("list", other, "-r", filled).stdout


def test_states_of_backups_are_listed(command: Command, filled: Path) -> None:
    directory = filled / UUID / TWO.id
    verification.write(directory, Verification(TWO.time, Verdict.GOOD, 100.0, 1))
    heading, one, two = command("list", "-r", filled, "web").stdout.splitlines()[1:]
    assert heading.split() == ["ID", "TIME", "SIZE", "STATE", "DISKS"]
    assert [line.split()[-2:] for line in (one, two)] == [["unverified", "vda"], ["good", "vda"]]
    protection.protect(directory, Protection(None, "audit"))
    notes.write(directory, "before the upgrade")
    lines = command("list", "-r", filled, "web").stdout.splitlines()
    assert lines[1].split()[-1] == "NOTE"
    assert lines[3].endswith("vda    protected; before the upgrade")
    assert max(map(len, lines)) <= 110  # a terminal wraps the note
    assert command("list", "-r", filled, "--tree").stdout.splitlines()[2].endswith("  protected")
    verification.write(directory, Verification(TWO.time, Verdict.DAMAGED, 3.0, 1))
    assert command("list", "-r", filled).stdout.splitlines()[-1].endswith(" 1 damaged")
    assert command("list", "-r", filled, "--tree").stdout.splitlines()[2].endswith("  damaged, protected")
    document = command("list", "-r", filled, "--json").document
    assert document["domains"][0]["damaged"] == 1
    [older, newer] = document["backups"]
    assert (older["states"], older["verification"], older["protection"], older["note"]) == (["unverified"], *[None] * 3)
    assert newer["states"] == ["damaged", "protected"]
    assert newer["verification"] == {
        "time": manifest.iso(TWO.time),
        "verdict": "damaged",
        "percent": 3.0,
        "damaged_ranges": 0,
    }
    assert (newer["protection"], newer["note"]) == ({"time": None, "reason": "audit"}, "before the upgrade")
    assert (newer["chain_images"], newer["chain_size_bytes"]) == (2, ONE.size_bytes + TWO.size_bytes)


def test_columns_are_those_that_are_asked_for(command: Command, filled: Path) -> None:
    lines = command("list", "web", "-r", filled, "--columns", "chain", "chain-size", "id").stdout.splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["CHAIN", "CHAIN", "SIZE", "ID"],
        ["1", "196.0", "KiB", ONE.id],
        ["2", "392.0", "KiB", TWO.id],
    ]
    heading = command("list", "web", "-r", filled, "--columns", "all").stdout.splitlines()[1]
    assert heading.split("  ")[0] == "ID"
    assert heading.endswith("NOTE")
    for words in (("--columns", "id"), ("web", "--columns", "id", "--tree")):
        assert "--columns is for" in command("list", "-r", filled, *words, status=2).stderr
    assert "'chain'" in command("list", "web", "-r", filled, "--columns", "chian", status=2).stderr


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        (("--since", "20261123T140000Z"), [TWO.id]),
        (("--until", "2026-11-23T13:00:00Z"), [ONE.id]),
        (("--level", "full"), [ONE.id]),
        (("--level", "full", "incremental"), [ONE.id, TWO.id]),
        (("--state", "unverified", "--level", "incremental"), [TWO.id]),
        (("--state", "good", "damaged"), []),
    ],
)
def test_backups_are_filtered(command: Command, filled: Path, options: tuple[str, ...], ids: list[str]) -> None:
    document = command("list", "web", "-r", filled, "--json", *options).document
    assert [one["id"] for one in document["backups"]] == ids
    lines = command("list", "web", "-r", filled, *options).stdout.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ids
    if ids:
        # What a chain takes does not depend on what is shown of it.
        assert document["backups"][-1]["chain_images"] == (1 if ids[-1] == ONE.id else 2)
        assert command("list", "-r", filled, *options).stdout.splitlines()[1].split()[5] == str(len(ids))
    else:
        assert lines == [f"No such backups in {filled}."]


def test_unfinished_backups_are_a_state(command: Command, filled: Path) -> None:
    (filled / UUID / f"{THREE_ID}.partial").mkdir()
    lines = command("list", "web", "-r", filled, "--state", "unfinished").stdout.splitlines()
    assert lines == [f"Domain web ({UUID})", f"Unfinished: {THREE_ID}"]
    assert THREE_ID not in command("list", "web", "-r", filled, "--state", "unverified").stdout
    assert THREE_ID not in command("list", "web", "-r", filled, "--until", "2026-11-23T20:00:00Z").stdout


def test_broken_backups_are_a_state(command: Command, filled: Path) -> None:
    (filled / UUID / ONE.id / "vda.qcow2").unlink()
    lines = command("list", "web", "-r", filled, "--state", "broken", status=6).stdout.splitlines()
    assert [line.split()[-2] for line in lines[2:]] == ["broken", "broken"]
    (filled / UUID / TWO.id / "manifest.json").write_text("{")
    outcome = command("list", "-r", filled, "--state", "broken", status=6)
    assert "2 broken" in outcome.stdout
    assert f"Backup {TWO.id} is broken" in outcome.stderr


def test_time_that_ends_before_it_begins_is_a_usage_error(command: Command, filled: Path) -> None:
    words = ("--since", "2026-11-24", "--until", "2026-11-23")
    assert "--since is after that of --until" in command("list", "-r", filled, *words, status=2).stderr
    assert "'damgaed'" in command("list", "-r", filled, "--state", "damgaed", status=2).stderr


def test_words_of_the_command_are_those_of_the_code() -> None:
    assert list(list_command.STATES) == [state.value for state in State]
    assert list(list_command.COLUMNS) == list(backup_table.COLUMNS)


def test_unusual_change_is_listed_and_shown(command: Command, repository: Path) -> None:
    """Whoever looks at the list in the morning sees it, not only the backup's own output at night."""
    change = ChangeRecord(1, 2, 3, 4, unusual="12 times the usual change")
    one = backup(1, image("vda", change=change), image("vdb"))
    commit(Repository.open(repository), one)
    for words in (("list", "web", "-r"), ("show", "web", "-r")):
        text = command(*words, repository).stdout
        assert re.search(r"Unusual.*vda: 12 times the usual change", text)
        assert "vdb: " not in text.partition("Unusual")[2]
    (listed,) = command("list", "web", "-r", repository, "--json").document["backups"]
    assert listed["unusual"] == [{"dev": "vda", "what": "12 times the usual change"}]
