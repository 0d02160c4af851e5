"""A value has the type of its key, the texts that its option takes, and nothing that hurts a command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.config.test_times import ANYTHING
from vbackup.config import keys
from vbackup.config.keys import Key, Kind
from vbackup.config.typed import InvalidValueError, name_fault, typed

ALL = [key for table in (*keys.JOB_COMMANDS.values(), *keys.TARGET_COMMANDS.values(), keys.JOB) for key in table]


def key(name: str, command: str = "backup") -> Key:
    return next(one for one in (*keys.JOB_COMMANDS[command], *keys.COPY, *keys.JOB) if one.name == name)


@pytest.mark.parametrize(
    ("one", "value", "expected"),
    [
        (key("group"), True, True),
        (key("level"), "full", "full"),
        (key("compress"), True, "auto"),
        (key("compress"), False, "none"),
        (key("compress"), "zlib", "zlib"),
        (key("parallel"), 4, "4"),
        (key("parallel"), "4", "4"),
        (key("speed"), 50_000_000, "50000000"),
        (key("speed"), "50M", "50M"),
        (key("max-latency"), 0.5, "0.5"),
        (key("sample", "audit"), 0.00001, "0.00001"),
        (key("sample", "audit"), 5.0, "5"),
        (key("sample", "audit"), "5%", "5%"),
        (key("freeze-limit"), 30, "30"),
        (key("disk"), "vda", ("vda",)),
        (key("disk"), ["vda", "vdb"], ("vda", "vdb")),
        (key("fleecing"), "/fast", "/fast"),
        (key("fleecing"), "~/fast", str(Path.home() / "fast")),
        (key("domains"), [], ()),
        (key("note"), "für später", "für später"),
    ],
)
def test_value_is_what_the_option_takes(one: Key, value: object, expected: object) -> None:
    assert typed(one, value) == expected


@pytest.mark.parametrize(
    ("one", "value", "said"),
    [
        (key("group"), "yes", "it is 'yes'"),
        (key("group"), 1, "it is 1"),
        (key("level"), "fulll", "it is 'fulll'; the closest is 'full'"),
        (key("level"), True, "it is true"),
        (key("level"), 3, "it is 3"),
        (key("parallel"), True, "it is true"),
        (key("parallel"), 0, "from 1 to 1000"),
        (key("parallel"), [4], "it is an array"),
        (key("parallel"), float("inf"), "inf"),
        (key("parallel"), 10**400, "from 1 to 1000"),
        (key("speed"), {"a": 1}, "it is a table"),
        (key("speed"), -1, "is not a rate"),
        (key("disk"), ["vda", 1], "it is 1"),
        (key("disk"), [""], "it is empty"),
        (key("disk"), 1, "it is 1"),
        (key("fleecing"), "fast", "is not an absolute path"),
        (key("fleecing"), "~user/fast", "is not an absolute path"),
        (key("fleecing"), "/a\0b", "has the character '\\x00'"),
        (key("note"), "a\nb", "has the character '\\n'"),
        (key("note"), "x" * 5000, "at most 4096"),
        (key("domains"), ["a\x7f"], "has the character"),
        (key("recipient"), "ssh-rsa AAA", "begins with age1"),
        (key("identity"), "AGE-SECRET-KEY-1QQQ", "the configuration has no secrets"),
    ],
)
def test_what_is_not_valid_is_said(one: Key, value: object, said: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        typed(one, value)
    assert said in str(caught.value)
    assert "1QQQ" not in str(caught.value)


def test_fault_of_one_of_several_has_its_number() -> None:
    with pytest.raises(InvalidValueError) as caught:
        typed(key("disk"), ["vda", "", "vdb"])
    assert caught.value.item == 1


@given(st.sampled_from(ALL), ANYTHING)
def test_any_value_is_typed_or_refused(one: Key, value: Any) -> None:
    try:
        found = typed(one, value)
    except InvalidValueError as err:
        assert str(err)  # noqa: PT017 - whether it is raised depends on the value
        return
    if one.kind in keys.LISTS:
        assert isinstance(found, tuple)
    elif one.kind is Kind.FLAG:
        assert isinstance(found, bool)
    elif one.kind not in (Kind.DAY_TIMES, Kind.DAYS, Kind.WINDOW):
        assert isinstance(found, str)
        assert "\0" not in found


@pytest.mark.parametrize("name", ["nightly", "a", "A-1_b", "0" * 63])
def test_name_can_be_part_of_a_unit(name: str) -> None:
    assert name_fault(name) is None


@pytest.mark.parametrize("name", ["", "a b", "a.b", "-a", "_a", "a/b", "..", "ü", "a\n", "0" * 64, "a@b"])
def test_name_that_cannot_is_refused(name: str) -> None:
    assert name_fault(name) is not None
