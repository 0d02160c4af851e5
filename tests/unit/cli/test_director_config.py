"""The configuration of a director: the answers to Bacula's traps are in it, and no name breaks it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vbackup.cli import director_config
from vbackup.cli.director_config import Director, Names
from vbackup.errors import UsageError

NAMES = Names(
    director="dir",
    client="fd",
    address="host.example",
    catalog="Cat",
    storage="Store",
    pool="Pool",
    messages="Std",
    schedule=None,
    command=Path("/usr/local/bin/vbackup"),
    stage=None,
    where=Path("/restore"),
)


def lines(kind: Director = Director.BACULA, domain: str = "web", names: Names = NAMES) -> list[str]:
    return [line.strip() for line in director_config.text(kind, [domain], names, password="pw").splitlines()]


def test_plugin_of_bacula_has_a_name_for_each_job_and_needs_no_shell() -> None:
    [plugin] = [line for line in lines() if line.startswith("Plugin")]
    assert plugin == (
        r"""Plugin = "|/bin/sh -c 'echo \"bpipe:/vbackup/web/%i-%l.tar:"""
        "exec /usr/local/bin/vbackup engine read --domain web --job-id %i --level %l "
        "--since $(echo %s | tr -c 0-9 .) --begun $(echo %j | tr -c 0-9 .):"
        "exec /usr/local/bin/vbackup engine write --domain web --where %%w" + r"""\"'" """.strip()
    )


def test_plugin_of_bareos_has_named_arguments_and_no_word_of_a_shell() -> None:
    [plugin] = [line for line in lines(Director.BAREOS) if line.startswith("Plugin")]
    text = plugin.partition('echo \\"')[2].rpartition('\\"')[0]
    # The shell is the director's, and is gone when the file daemon gets the text.
    assert dict(part.split("=", 1) for part in text.removeprefix("bpipe:").split(":")) == {
        "file": "/vbackup/web/%i-%l.tar",
        "reader": "/usr/local/bin/vbackup engine read --domain web --job-id %i --level %l"
        " --since $(echo %s | tr -c 0-9 .) --begun $(echo %j | tr -c 0-9 .)",
        "writer": "/usr/local/bin/vbackup engine write --domain web --where %%w",
    }


@pytest.mark.parametrize("kind", Director)
def test_failed_reader_fails_the_job(kind: Director) -> None:
    text = lines(kind)
    begin = text.index("RunScript {")
    script = text[begin + 1 : text.index("}", begin)]
    assert script == [
        "RunsWhen = After",
        "RunsOnClient = yes",
        "RunsOnSuccess = yes",
        "RunsOnFailure = yes",
        "FailJobOnError = yes",
        "Command = \"/usr/local/bin/vbackup engine finish --domain web --job-id %i --level %l --exit '%e'\"",
    ]


@pytest.mark.parametrize("kind", Director)
def test_change_of_the_text_does_not_force_a_full(kind: Director) -> None:
    """On the line of another directive it would be ignored."""
    assert "Ignore FileSet Changes = yes" in lines(kind)


def test_stage_and_schedule_are_there_if_they_are_given() -> None:
    text = "\n".join(lines(names=replace(NAMES, stage=Path("/var/stage"), schedule="Nightly")))
    assert text.count("--stage /var/stage") == 2
    assert "Schedule = Nightly" in text
    assert "Schedule" not in "\n".join(lines())


def test_both_sides_have_one_password() -> None:
    assert lines().count('Password = "pw"') == 2


def test_braces_are_balanced() -> None:
    text = "\n".join(lines())
    assert text.count("{") == text.count("}") == 8


@pytest.mark.parametrize("domain", ["a b", "a:b", "a'b", 'a"b', "a%b", "-a", "", "a\nb", "ü", "a" * 112])
def test_domain_whose_name_would_break_the_text_is_refused(domain: str) -> None:
    with pytest.raises(UsageError, match="give its UUID"):
        lines(domain=domain)


@pytest.mark.parametrize("name", ["a b", "a:b", 'a"', "a\nb", ""])
def test_resource_that_would_break_the_text_is_refused(name: str) -> None:
    for names in (replace(NAMES, storage=name), replace(NAMES, schedule=name), replace(NAMES, client=name)):
        with pytest.raises(UsageError, match="cannot be in the configuration"):
            lines(names=names)


@pytest.mark.parametrize("path", ["/a b", "/a:b", "relative", "/a'b", "/a%b"])
def test_path_that_would_break_the_text_is_refused(path: str) -> None:
    for names in (
        replace(NAMES, command=Path(path)),
        replace(NAMES, stage=Path(path)),
        replace(NAMES, where=Path(path)),
    ):
        with pytest.raises(UsageError, match="cannot be in the configuration"):
            lines(names=names)
