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
        (("web", "--exclude", "db"), "--exclude needs --all"),
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


@pytest.mark.parametrize(("given", "uri", "quiet"), [([], None, False), (["-c", "x:///", "-q"], "x:///", True)])
def test_option_before_the_command_is_not_reset_behind_it(given: list[str], uri: str | None, quiet: bool) -> None:
    """The command's parser has the same options, whose defaults would win."""
    options = parse([*given, "list"])
    assert (options.connect, options.quiet, options.verbose) == (uri, quiet, False)
