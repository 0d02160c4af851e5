"""One exit status, one document and one table stand for the backups of several domains."""

from __future__ import annotations

import itertools
import signal
from typing import Any

import pytest

from tests.unit.builders import backup as a_backup
from vbackup.cli import batch as printed
from vbackup.cli.parser import parse
from vbackup.domain.selection import Chosen, Selection, Skipped
from vbackup.errors import (
    BusyError,
    DomainNotFoundError,
    GroupError,
    InterruptedBySignalError,
    UsageError,
    VbackupError,
)
from vbackup.model import Group, GroupMember
from vbackup.operations.batch import Result


def result(name: str, error: VbackupError | None = None, **changes: Any) -> Result[Any]:
    made = None if error is not None else a_backup(1, domain_name=name, **changes)
    return Result(Chosen(name, None if error is not None else f"uuid of {name}"), 1.25, made, error)


@pytest.mark.parametrize(
    ("errors", "is_group", "status"),
    [
        ((None, None), False, 0),
        ((None, BusyError("x")), False, 3),
        ((BusyError("x"), BusyError("x")), False, 3),
        ((BusyError("x"), InterruptedBySignalError(signal.SIGINT)), False, 130),
        ((None, None), True, 0),
        ((GroupError("b", BusyError("x")), BusyError("x")), True, 8),
        ((GroupError("b", BusyError("x")), InterruptedBySignalError(signal.SIGHUP)), True, 129),
    ],
)
def test_exit_status(errors: tuple[VbackupError | None, ...], is_group: bool, status: int) -> None:
    results = [result(name, error) for name, error in zip("ab", errors)]
    assert printed.status_of(results, is_group=is_group) == status


class Vb:
    """A host with the domains web-1 and web-2."""

    def select(self, words: list[str], exclude: list[str]) -> Selection:
        if words == ["x*"]:
            raise DomainNotFoundError(None, "matches 'x*'", "look elsewhere")
        chosen = tuple(Chosen(name, f"uuid of {name}") for name in ("web-1", "web-2"))
        return Selection(chosen, unmatched=tuple(word for word in [*words, *exclude] if word.startswith("x")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("web*", "--exclude", "x*"), None),
        (("web*", "x?"), "The pattern 'x\\?' matches no domain. Nothing was backed up"),
        (("x*",), r"No domain matches 'x\*'; look elsewhere. Nothing was backed up"),
        (("gone", "web*"), None),
    ],
)
def test_strict_refuses_a_pattern_that_matches_nothing(arguments: tuple[str, ...], message: str | None) -> None:
    vb: Any = Vb()
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    options = parse(["backup", "-r", "/r", *arguments, "--strict"])
    if message is None:
        assert len(printed.select(words, options, vb).chosen) == 2
    else:
        with pytest.raises(UsageError, match=message):
            printed.select(words, options, vb)
    options = parse(["backup", "-r", "/r", *arguments])
    if words == ["x*"]:
        with pytest.raises(DomainNotFoundError):
            printed.select(words, options, vb)
    else:
        assert len(printed.select(words, options, vb).chosen) == 2


def test_document_has_each_domain_with_its_backup_or_its_error() -> None:
    group = Group("0123456789ab", (GroupMember("a", "uuid of a", "id"),), 12.5)
    results = [result("a", group=group), result("b", BusyError("busy"))]
    document = printed._document(results, Selection((), (Skipped("c", "uuid of c", "why"),), ("d*",)), duration_s=2.5)
    assert document["unmatched"] == ["d*"]
    assert [one["name"] for one in document["domains"]] == ["a", "b"]
    done, failed = document["domains"]
    assert (done["backup"]["schema"], done["backup"]["domain"]["name"]) == ("vbackup.backup/1", "a")
    assert (failed["uuid"], failed["error"]["schema"], failed["error"]["status"]) == (None, "vbackup.error/1", 8)
    assert document["left_out"] == [{"name": "c", "uuid": "uuid of c", "reason": "why"}]
    assert (document["done"], document["failed"], document["duration_s"]) == (1, 1, 2.5)
    assert document["group"] == {
        "id": "0123456789ab",
        "members": [{"domain": {"name": "a", "uuid": "uuid of a"}, "id": "id"}],
        "spread_ms": 12.5,
    }


def test_table_has_a_line_for_each_domain_whatever_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    results = [result("a\nb"), result("[red]\x1b[31m", BusyError("one\ntwo"))]
    printed._print(results, [Skipped("käse", "uuid", "why\x07")], duration_s=2.5, dry_run=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["DOMAIN", "LEVEL", "COPIED", "SIZE", "TIME", "RESULT"]
    assert lines[1].startswith(r"a\nb")
    assert r"[red]\x1b[31m" in lines[2]
    assert r"failed: one\ntwo" in lines[2]
    assert lines[3:] == [r"Left out: käse (why\x07)", "1 of 2 domains backed up in 2.5 s."]
