"""Backups are listed in columns that fit 80, with the others on request."""

from __future__ import annotations

import pytest

from tests.unit.builders import NOON, backup, image, incremental
from vbackup.cli import backup_table
from vbackup.model import Backup
from vbackup.repository.condition import ChainSize, Condition
from vbackup.repository.protection import Protection
from vbackup.repository.verification import Verdict, Verification

ONE = backup(1, image("vda"), image("vdb"))
TWO = incremental(2, ONE, *(f"vd{letter}" for letter in "abcdef"))
PLAIN = Condition(None, None, None, is_broken=False, chains={"vda": ChainSize(3, 1024)})
GOOD = Verification(NOON, Verdict.GOOD, 100.0, 1)


def lines(capsys: pytest.CaptureFixture[str], rows: list[tuple[Backup, Condition]], *columns: str) -> list[str]:
    backup_table.print_table([one for one, _ in rows], {one.id: known for one, known in rows}, columns)
    return capsys.readouterr().out.splitlines()


def test_default_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(capsys, [(ONE, PLAIN), (incremental(2, ONE), PLAIN)])
    assert max(map(len, found)) <= 80
    assert found[1].endswith("unverified  vda vdb")


def test_note_takes_the_last_column_and_many_disks_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    noted = Condition(None, Protection(), "käse", is_broken=False, chains={})
    found = lines(capsys, [(ONE, noted), (TWO, PLAIN)])
    assert found[0].endswith("DISKS    NOTE")
    assert found[1].endswith("vda vdb  protected; käse")
    assert found[2].endswith("6 disks")


@pytest.mark.parametrize(
    ("column", "known", "text"),
    [
        ("verified", PLAIN, "-"),
        ("verified", Condition(GOOD, None, None, is_broken=False, chains={}), "good 2026-11-23"),
        (
            "verified",
            Condition(Verification(NOON, Verdict.PARTIAL, 2.5, 1), None, None, is_broken=False, chains={}),
            "partial 2.5 % 2026-11-23",
        ),
        ("protected", PLAIN, "-"),
        ("protected", Condition(None, Protection(), None, is_broken=False, chains={}), "yes"),
        ("protected", Condition(None, Protection(None, "audit"), None, is_broken=False, chains={}), "audit"),
        ("chain", PLAIN, "    3"),
        ("chain", Condition(None, None, None, is_broken=True, chains={}), "    -"),
        ("chain-size", PLAIN, "   1.0 KiB"),
        ("state", Condition(GOOD, None, None, is_broken=True, chains={}), "broken"),
        ("host", PLAIN, "-"),
        ("note", PLAIN, "-"),
        ("level", PLAIN, "full"),
        ("consistency", PLAIN, "crash"),
    ],
)
def test_cell_of_a_column(capsys: pytest.CaptureFixture[str], column: str, known: Condition, text: str) -> None:
    assert lines(capsys, [(ONE, known)], column)[1].startswith(text)
