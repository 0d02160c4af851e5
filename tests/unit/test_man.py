"""The man pages, and the tests' README, tell of just what there is: options, exit statuses, JSON, tests."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest
from docutils import nodes
from docutils.core import publish_doctree

import vbackup
from tests.unit.builders import pull_session
from vbackup import errors
from vbackup.api import Connection
from vbackup.cli import parser
from vbackup.engine.base import Reason
from vbackup.errors import Status
from vbackup.layers import ChainState
from vbackup.model import (
    Backup,
    BlockDriver,
    BlocksRecord,
    ChangeRecord,
    Consistency,
    DiskImage,
    Group,
    HostIdentity,
    Level,
    MachineFile,
    MachineKind,
)
from vbackup.repository import manifest, repository
from vbackup.scripts import finding
from vbackup.scripts.finding import ScriptPhase
from vbackup.scripts.runner import VARIABLES
from vbackup.sessions.record import Note, SessionState

TOP = Path(__file__).resolve().parents[2]
COMMON = "Options of every command"


def page(name: str) -> nodes.document:
    text = (TOP / "man" / f"{name}.rst").read_text()
    document: nodes.document = publish_doctree(text, settings_overrides={"halt_level": 2, "report_level": 2})
    return document


COMMAND_PAGE = page("vbackup.1")
REPOSITORY_PAGE = page("vbackup-repository.5")
TRANSACTION_PAGE = page("vbackup-transaction.7")
RECOVERY_PAGE = page("vbackup-recovery.7")
JSON_PAGE = page("vbackup-json.7")
SCRIPTS_PAGE = page("vbackup-scripts.7")
ENGINES_PAGE = page("vbackup-engines.7")
PAGES = [page(path.stem) for path in sorted((TOP / "man").glob("*.rst"))]
API_PAGE = page("vbackup-api.7")
SESSION_PAGE = page("vbackup-session.7")


def section(document: nodes.document, title: str) -> nodes.section:
    found = [one for one in document.findall(nodes.section) if one.next_node(nodes.title).astext() == title]
    assert len(found) == 1, f"sections called {title}: {len(found)}"
    return found[0]


def terms(element: nodes.Element) -> Iterator[nodes.term]:
    """The terms of definition lists, without those of lists within a definition."""
    for item in element.findall(nodes.definition_list_item):
        if not isinstance(item.parent.parent, nodes.definition):
            yield item.next_node(nodes.term)


def strong(element: nodes.Element) -> list[str]:
    return [one.astext() for one in element.findall(nodes.strong)]


def documented_options(title: str) -> set[str]:
    return {word for term in terms(section(COMMAND_PAGE, title)) for word in strong(term) if word.startswith("-")}


def subparsers() -> dict[str, argparse.ArgumentParser]:
    for action in parser.build()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("the command has no subcommands")


def actions_of(one: argparse.ArgumentParser) -> list[argparse.Action]:
    """Of a command and its own subcommands."""
    found = []
    for action in one._actions:
        found.append(action)
        if isinstance(action, argparse._SubParsersAction):
            found += [inner for below in action.choices.values() for inner in actions_of(below)]
    return found


def options_of(one: argparse.ArgumentParser) -> set[str]:
    return {option for action in actions_of(one) for option in action.option_strings}


COMMANDS = subparsers()


def test_every_command_has_its_section_and_every_section_its_command() -> None:
    commands = section(COMMAND_PAGE, "COMMANDS")
    titles = [one.next_node(nodes.title).astext() for one in commands.children if isinstance(one, nodes.section)]
    assert titles == [COMMON, *(f"vbackup {name}" for name in COMMANDS)]


@pytest.mark.parametrize("name", COMMANDS)
def test_options_of_a_command_are_those_of_its_section(name: str) -> None:
    common = documented_options(COMMON) - {"--version"}
    assert documented_options(f"vbackup {name}") | common == options_of(COMMANDS[name])


def test_options_of_every_command_are_not_told_twice() -> None:
    in_all = set.intersection(*(options_of(one) for one in COMMANDS.values()))
    at_top = {option for action in parser.build()._actions for option in action.option_strings}
    assert documented_options(COMMON) == in_all | at_top


@pytest.mark.parametrize("name", COMMANDS)
def test_values_to_choose_from_are_those_of_the_code(name: str) -> None:
    told: dict[str, set[str]] = {}
    for title in (COMMON, f"vbackup {name}"):
        for term in terms(section(COMMAND_PAGE, title)):
            definition = term.parent.next_node(nodes.definition)
            words = {*strong(term), *(word for inner in definition.findall(nodes.term) for word in strong(inner))}
            values = {word for word in words if not word.startswith("-")}
            told.update((word, values) for word in words - values)
    for action in actions_of(COMMANDS[name]):
        for option in action.option_strings:
            assert told[option] == set(action.choices or ()), option


@pytest.mark.parametrize("name", COMMANDS)
def test_synopsis_has_the_command(name: str) -> None:
    assert f"vbackup {name}" in strong(section(COMMAND_PAGE, "SYNOPSIS"))


def test_exit_statuses_are_those_of_the_code() -> None:
    told = [strong(term)[0] for term in terms(section(COMMAND_PAGE, "EXIT STATUS"))]
    assert told == [str(status.value) for status in Status]


def public_calls() -> set[str]:
    """The calls of a connection, but for what closes it and what turns names into UUIDs."""
    own = {"close", "connect_to_libvirt", "uuid_of", "uuids_of"}
    return {name for name in dir(Connection) if callable(getattr(Connection, name)) and name[0] != "_"} - own


def test_every_call_of_the_library_has_its_command() -> None:
    rows = [
        row for row in section(API_PAGE, "CONNECTION").findall(nodes.row) if not isinstance(row.parent, nodes.thead)
    ]
    told = [word for row in rows for word in strong(row.next_node(nodes.entry))]
    assert set(told) == public_calls()
    assert len(told) == len(set(told))
    commands = {word.split()[0] for row in rows for word in strong(row)} & COMMANDS.keys()
    in_text = {"init", "hooks", "schema", "status", "metrics", "completion", "config", "run"}
    in_text |= {"report", "schedule", "notify"}
    assert commands == COMMANDS.keys() - in_text


def test_errors_of_the_library_have_the_status_that_the_page_says() -> None:
    for term in terms(section(API_PAGE, "ERRORS")):
        status = re.search(r"\((\d+)", term.astext())
        for name in strong(term):
            told = getattr(errors, name).status if name != "InterruptedBySignalError" else Status.SIGNAL
            assert status is not None
            assert int(status[1]) == int(told), name


def test_kinds_of_json_are_those_of_the_code() -> None:
    sources = "".join(path.read_text() for path in Path(vbackup.__file__).parent.rglob("*.py"))
    in_code = set(re.findall(r'"(vbackup\.[a-z-]+/\d+)"', sources))
    printed = {strong(term)[0] for term in terms(section(COMMAND_PAGE, "JSON OUTPUT")) if strong(term)}
    printed = {word for word in printed if "/" in word}
    kept = {
        word.astext()
        for one in (REPOSITORY_PAGE, SESSION_PAGE)
        for word in one.findall(nodes.literal)
        if re.fullmatch(r"vbackup\.\S+/\d+", word.astext())
    }
    assert printed | kept == in_code
    assert printed.isdisjoint(kept)


def test_phases_and_variables_of_scripts_are_those_of_the_code() -> None:
    phases = [strong(term)[0] for term in terms(section(SCRIPTS_PAGE, "PHASES"))]
    assert sorted(phases) == sorted(phase.value for phase in ScriptPhase)
    variables = {word for term in terms(section(SCRIPTS_PAGE, "ENVIRONMENT")) for word in strong(term)}
    assert variables == set(VARIABLES)
    assert str(finding.DIRECTORY) in SCRIPTS_PAGE.astext()


def test_members_of_a_manifest_are_those_of_the_code() -> None:
    image = DiskImage(
        *("vda", Level.FULL, None, "asked for", "vda.qcow2", 0, 0, 0, "sha256:", None, "node", None, BlockDriver.RAW),
        blocks=BlocksRecord("sha256:", "sha256:", data_blocks=0, zero_blocks=0),
        chain=ChainState(()),
        change=ChangeRecord(0, 0, 0, 0),
        checkpoint="20261123T101500Z-full",
        full="20261123T101500Z-full",
    )
    backup = Backup(
        id="20261123T101500Z-full",
        sequence=1,
        level=Level.FULL,
        parent=None,
        time=datetime.now(timezone.utc),
        domain_name="name",
        domain_uuid="uuid",
        disks=(image,),
        left_out=(),
        consistency=Consistency.CRASH,
        frozen_ms=0,
        duration_s=0,
        files={},
        versions={},
        group=Group("0123456789ab", ()),
        host=HostIdentity("host", None),
        machine=(MachineFile(MachineKind.NVRAM, 0, "sha256:", None),),
        autostart=False,
        loader="/code",
    )
    document = manifest.document(backup)
    told = [strong(term)[0] for term in terms(section(REPOSITORY_PAGE, "MANIFEST"))]
    assert told == ["schema", *document, "digest", *document["disks"][0]]
    backup_members = next(
        term.parent.next_node(nodes.definition)
        for term in terms(section(COMMAND_PAGE, "JSON OUTPUT"))
        if strong(term) == ["vbackup.backup/1"]
    )
    assert set(document) <= set(strong(backup_members))


def test_session_document_is_told() -> None:
    document = pull_session("vda", warnings=(Note("CODE", "A sentence.", "vda"),)).document()
    told = [strong(term)[0] for term in terms(section(SESSION_PAGE, "SESSION DOCUMENT"))]
    assert told == [*document, *document["disks"][0]]
    codes = [strong(term)[0] for term in terms(section(SESSION_PAGE, "REASON CODES"))]
    assert codes == [reason.value for reason in Reason]
    states = {strong(term)[0] for term in terms(section(SESSION_PAGE, "STATES"))}
    assert states == {state.value for state in SessionState}


def test_files_of_a_backup_are_told() -> None:
    files = section(COMMAND_PAGE, "FILES").astext() + section(REPOSITORY_PAGE, "DESCRIPTION").astext()
    for name in (repository.MARKER, repository.PARTIAL, "domain.json", "manifest.json", *manifest.FURTHER_FILES):
        assert name in files


@pytest.mark.parametrize("document", PAGES)
def test_version_is_that_of_the_code(document: nodes.document) -> None:
    assert document.next_node(nodes.version).astext() == f"vbackup {vbackup.__version__}"


def test_tests_named_in_their_readme_are_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (TOP / "tests" / "README.md").read_text()))
    there = {
        name
        for path in TOP.glob("tests/*/**/test_*.py")
        for name in re.findall(r"^(?:def )?(test_\w+)", path.read_text(), re.M)
    }
    assert named
    assert named <= there
