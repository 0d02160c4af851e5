"""The man page vbackup.toml(5) has every key with its words and default, and its example is a configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from docutils import nodes

from tests.unit.test_man import page, strong, terms
from vbackup.config import keys, loading
from vbackup.config.keys import Key

PAGE = page("vbackup.toml.5")


def lists() -> list[nodes.definition_list]:
    """The lists of keys, in their order: all but those of files."""
    return [
        one
        for one in PAGE.findall(nodes.definition_list)
        if not isinstance(one.parent, nodes.definition) and strong(next(terms(one)))
    ]


#: The tables in the order of the page.
TABLES: list[tuple[str, Sequence[Key]]] = [
    ("repository", keys.REPOSITORY),
    ("target", keys.TARGET),
    *((f"target.{name}", keys.TARGET_COMMANDS[name]) for name in ("copy", "prune", "verify")),
    ("job", keys.JOB),
    *((f"job.{name}", keys.JOB_COMMANDS[name]) for name in ("backup", "prune", "verify", "audit")),
    ("notify", keys.NOTIFIER),
    ("secret", keys.SECRET),
    ("metrics", keys.METRICS),
    ("report", keys.REPORT),
]


def test_page_has_a_list_for_each_table() -> None:
    assert len(lists()) == len(TABLES)
    shown = PAGE.astext()
    for name, _ in TABLES:
        kind, _, command = name.partition(".")
        if command:
            assert f"[{kind}.NAME.{command}]" in shown


@pytest.mark.parametrize(("number", "name"), list(enumerate(name for name, _ in TABLES)))
def test_keys_of_a_table_are_those_of_the_code(number: int, name: str) -> None:
    found = {
        strong(term)[0]: term.parent.next_node(nodes.definition).astext().replace("\n", " ")
        for term in terms(lists()[number])
    }
    known = {key.name: key for key in TABLES[number][1]}
    assert list(found) == list(known)
    for key in known.values():
        told = found[key.name]
        assert told.startswith(key.help[0].upper() + key.help[1:]), key.name
        assert all(word in told for word in key.choices)
        assert key.default is None or f"Default: {key.default}." in told


def test_example_is_a_configuration() -> None:
    (text,) = [one.astext() for one in PAGE.findall(nodes.literal_block) if "[job.nightly]" in one.astext()]
    loaded = loading.parsed(Path("/example.toml"), text)
    assert loaded.faults == ()
    assert set(loaded.config.jobs) == {"nightly", "database"}
    assert loaded.config.jobs["nightly"].max_age_s == 26.25 * 3600


def test_files_are_those_of_the_code() -> None:
    from vbackup.config import documents, keeping

    shown = PAGE.astext()
    assert f"{documents.SYSTEM}/{documents.FILE}" in shown
    assert f"{documents.SYSTEM}/{documents.DIRECTORY}/" in shown
    assert re.search(rf"REPO/{keeping.OLD_FILE}\b", shown)
