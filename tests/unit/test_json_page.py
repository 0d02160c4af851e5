"""vbackup-json(7) has every code as the code has it, and its examples work as they are printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from docutils import nodes

from tests import documents
from tests.unit.builders import UUID
from tests.unit.test_errors import EXAMPLES
from tests.unit.test_man import JSON_PAGE, section, strong, terms
from vbackup import errors
from vbackup.errors import Retry, VbackupError


def shown(title: str) -> list[str]:
    return [block.astext() for block in section(JSON_PAGE, title).findall(nodes.literal_block)]


# codes


def test_every_code_is_told_in_the_order_of_the_code() -> None:
    told = [word for term in terms(section(JSON_PAGE, "Codes")) for word in strong(term)]
    assert told == list(dict.fromkeys(error.code for error in sorted((one for one, _ in EXAMPLES), key=place)))


def place(error: VbackupError) -> int:
    return [one for one in vars(errors).values() if isinstance(one, type)].index(type(error))


@pytest.mark.parametrize("error", [error for error, _ in EXAMPLES], ids=lambda error: error.code)
def test_status_retry_and_details_of_a_code_are_those_of_the_code(error: VbackupError) -> None:
    (definition,) = [
        term.parent.next_node(nodes.definition)
        for term in terms(section(JSON_PAGE, "Codes"))
        if error.code in strong(term)
    ]
    text = definition.astext().replace("\n", " ")
    status = "128 + the signal" if error.status > errors.Status.SIGNAL else str(int(error.status))
    wanted = {f"Status {status}, retry {error.retry.value}."}
    if hasattr(error, "cause"):
        wanted |= {f"Status of its cause, retry {error.retry.value}.", "Status and retry of its cause."}
    assert any(text.startswith(each) for each in wanted), text
    assert set(strong(definition)) - {"vbackup"} == error.evidence().keys()


def test_every_way_to_retry_is_told() -> None:
    literals = {one.astext() for one in section(JSON_PAGE, "ERRORS").findall(nodes.literal)}
    assert {one.value for one in Retry} <= literals


# examples


def test_event_that_is_shown_is_one() -> None:
    (event,) = [block for block in shown("EVENTS") if block.startswith("{")]
    documents.check(json.loads(event))


#: What each example prints in a repository with two backups of a domain, that no libvirt has.
PRINTED = {
    "vbackup schema\n": r"(?s)SCHEMA +DOCUMENT\n.*",
    '"none", .backups': r"web\t20261123T140000Z-incremental\t2\t\d+\n",
    "26 hours ago": "",
    "answer=": r"DOMAIN_NOT_FOUND: No domain 'web' .*\n",
    "--unbuffered": r"(vda \d+ \d+\n)+",
    "import json, jsonschema": "",
}


def run(example: str, repository: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    commands = directory / "commands"
    commands.mkdir(exist_ok=True)
    for name, words in (("vbackup", '-m vbackup "$@"'), ("python3", '"$@"')):
        (commands / name).write_text(f"#!/bin/sh\nexec '{sys.executable}' {words}\n")
        (commands / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "VBACKUP_REPOSITORY": os.fspath(repository),
        "LIBVIRT_DEFAULT_URI": "test:///default",
    }
    return subprocess.run(
        ["sh", "-c", example], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("example", [*shown("DESCRIPTION"), *shown("CLIENTS")], ids=lambda text: text[:40])
def test_example_works(example: str, filled: Path, tmp_path: Path) -> None:
    (printed,) = [value for key, value in PRINTED.items() if key in example]
    done = run(example, filled, tmp_path)
    # The backups of the fixture are of one day, so none is younger than 26 hours.
    assert done.returncode == (1 if "26 hours" in example else 0), done
    assert re.fullmatch(printed, done.stdout), done
    assert done.stderr == ""


def test_backup_that_is_young_is_found(filled: Path, tmp_path: Path) -> None:
    (example,) = [each for each in shown("CLIENTS") if "26 hours" in each]
    long_ago = example.replace("26 hours ago", "2026-11-23 12:00")
    assert long_ago != example
    assert run(long_ago, filled, tmp_path).returncode == 0
    (filled / UUID).rename(filled / UUID.replace("f", "e"))
    assert run(long_ago, filled, tmp_path).returncode != 0
