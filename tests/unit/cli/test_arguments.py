"""Arguments that several commands share: where they may stand, and what names a domain."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.builders import backup
from vbackup.cli.arguments import add_domain, add_domains, domain_of, domains_of, optional_domain_of
from vbackup.cli.parser import Parser, parse
from vbackup.errors import UsageError

if TYPE_CHECKING:
    from tests.conftest import Command


ONE = backup(1)


@pytest.mark.parametrize(
    "arguments", [("-q", "list"), ("list", "-q"), ("-c", "x:///", "list"), ("list", "-c", "x:///")]
)
def test_common_options_stand_before_or_behind_the_command(
    command: Command, filled: Path, arguments: tuple[str, ...]
) -> None:
    assert "web" in command(*arguments, "-r", filled).stdout


def parsed(*arguments: str) -> argparse.Namespace:
    parser = Parser(allow_abbrev=False)
    add_domains(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("web",), ["web"]),
        (("web", "db", "web"), ["web", "db", "web"]),
        (("--domain", "web"), ["web"]),
        (("web", "--domain", "web"), ["web"]),
        (("--all",), []),
        (("--all", "--exclude", "a", "b"), []),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_domains_are_words_or_all(arguments: tuple[str, ...], words: list[str]) -> None:
    assert domains_of(parsed(*arguments)) == words


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "No domain given"),
        (("web", "--domain", "db"), "Two domains given: web and db"),
        (("web", "--all"), "domains or --all, not both"),
        (("web", "--exclude", "db"), "--exclude needs --all or a pattern"),
        (("web", ""), "The domain name is empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_words_that_contradict_each_other_are_refused(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        domains_of(parsed(*arguments))


@pytest.mark.parametrize(
    ("arguments", "domain"),
    [(("web",), "web"), (("--domain", "web"), "web"), (("web", "--domain", "web"), "web"), ((), None)],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_domain_is_positional_or_an_option(arguments: tuple[str, ...], domain: str | None) -> None:
    parser = Parser(allow_abbrev=False)
    add_domain(parser)
    options = parser.parse_args(arguments)
    assert optional_domain_of(options) == domain
    if domain is None:
        with pytest.raises(UsageError, match="No domain given"):
            domain_of(options)
    else:
        assert domain_of(options) == domain


@pytest.mark.parametrize(("given", "uris", "quiet"), [([], [], False), (["-c", "x:///", "-q"], ["x:///"], True)])
def test_option_before_the_command_is_not_reset_behind_it(given: list[str], uris: list[str], quiet: bool) -> None:
    """The command's parser has the same options, whose defaults would win."""
    options = parse([*given, "list"])
    assert (options.uris, options.quiet, options.verbose) == (uris, quiet, False)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_repository_and_json_stand_before_or_after_the_command(command: Command, filled: Path, before: bool) -> None:
    options = ("-r", filled, "--json", "--progress", "none")
    done = command(*options, "list") if before else command("list", *options)
    assert done.document["schema"] == "vbackup.list/1"


def test_option_after_the_command_is_the_one_that_counts(command: Command, filled: Path) -> None:
    assert ONE.id in command("-r", "/nonexistent", "list", "--all", "-r", filled).stdout


@pytest.mark.parametrize("words", [("vda,vdb", "vdc"), ("vda", "vdb,vdc"), ("vda,vdb,vdc",)], ids=" ".join)
@pytest.mark.parametrize("option", ["--disk", "--exclude-disk"])
def test_disks_are_words_or_lists(option: str, words: tuple[str, ...]) -> None:
    options = parse(["backup", "web", option, *words])
    assert vars(options)[option[2:].replace("-", "_")] == ["vda", "vdb", "vdc"]
    assert parse(["backup", "web"]).disk == []


@pytest.mark.parametrize("word", ["vda,", ",", "vda,,vdb", ""])
def test_empty_name_of_a_disk_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match="has an empty name of a disk"):
        parse(["backup", "web", "--disk", word])


@pytest.mark.parametrize(
    "arguments",
    [("web", ONE.id), ("web", "--backup", ONE.id), ("--domain", "web", ONE.id), ("web", ONE.id, "--backup", ONE.id)],
    ids=" ".join,
)
def test_backup_is_a_word_or_an_option(command: Command, filled: Path, arguments: tuple[str, ...]) -> None:
    assert command("show", *arguments, "-r", filled, "--json").document["id"] == ONE.id


def test_two_different_backups_are_refused(command: Command, filled: Path) -> None:
    said = command("show", "web", ONE.id, "--backup", "x", "-r", filled, status=2).stderr
    assert f"Two backups given: {ONE.id} and x" in said
