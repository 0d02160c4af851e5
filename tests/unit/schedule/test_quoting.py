"""Whatever a path is, it is one word of a unit and of a line of cron, and nothing in it means anything there."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbackup.errors import UsageError
from vbackup.schedule.quoting import cron_command, job, unit_word

#: What can be printed, as a path that can be given.
WORDS = st.text(st.characters(blacklist_categories=("C", "Z"), whitelist_characters=" "), min_size=1)


@pytest.mark.parametrize("name", ["nightly", "a", "A-b_9", "9", "x" * 63])
def test_name_of_a_job(name: str) -> None:
    assert job(name) == name


@pytest.mark.parametrize(
    "name", ["", "-x", "_x", "a b", "a%i", "a\n", "a/b", "..", "ä", "x" * 64, "a@b", "$(id)", "a\\x2d"]
)
def test_what_cannot_be_the_name_of_a_job(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a job"):
        job(name)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("/usr/bin/vbackup", "/usr/bin/vbackup"),
        ("/my backups", '"/my backups"'),
        ("100%", '"100%%"'),
        ('a"b\\c', '"a\\"b\\\\c"'),
        ("$HOME;x", '"$HOME;x"'),
        (";", '";"'),
        ("", '""'),
    ],
)
def test_word_of_a_unit(text: str, word: str) -> None:
    assert unit_word(text) == word


@given(WORDS)
def test_word_of_a_unit_is_read_as_it_was(text: str) -> None:
    """systemd reads C escapes in double quotes, then "%%" as "%"."""
    word = unit_word(text)
    inner = word[1:-1] if word.startswith('"') else word
    assert inner.replace("\\\\", "\0").replace('\\"', '"').replace("\0", "\\").replace("%%", "%") == text
    assert "\n" not in word


@given(st.lists(WORDS, min_size=1))
def test_command_of_cron_is_read_as_it_was(argv: list[str]) -> None:
    """cron takes "\\%" for "%", and an unescaped one for the end of the line; the rest is the shell's."""
    line = cron_command(argv)
    assert "%" not in line.replace("\\%", "")
    assert shlex.split(line.replace("\\%", "%")) == argv


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\x00", "a\tb", "\u2028"])
def test_control_characters_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="control character"):
        unit_word(text)
    with pytest.raises(UsageError, match="control character"):
        cron_command(["vbackup", text])
