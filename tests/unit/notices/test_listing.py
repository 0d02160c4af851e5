"""The list of notifiers is what the configuration says, with what each was told last."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tests.unit.notices.runs import PLACE, USUAL, config, job
from vbackup.config.model import Notifier, Secret, When
from vbackup.errors import UsageError
from vbackup.notices.delivery import Kind
from vbackup.notices.listing import chosen, states
from vbackup.notices.memory import Memory
from vbackup.notices.told import Told

OPS = Notifier("ops", PLACE, USUAL, mail_to=("ops@example.org",))
CHECK = replace(OPS, name="check", mail_to=(), ping=Secret(file=Path("/x")))
CONFIG = config(OPS, CHECK, jobs={"nightly": job(notify=("check",)), "weekly": job("weekly")})


def test_notifiers_with_their_last_message(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.keep("ops", Told(last="2026-11-30T01:12:00+00:00", title="title", problem="It was refused."))
    ops, check = states(CONFIG, memory)
    assert (ops.name, ops.kind, ops.jobs) == ("ops", Kind.MAIL, ("weekly",))
    assert ops.when == (When.FAILURE, When.RECOVERY, When.OVERDUE, When.UNUSUAL)
    assert (ops.last, ops.title) == (datetime(2026, 11, 30, 1, 12, tzinfo=timezone.utc), "title")
    assert ops.problem == "It was refused."
    assert (check.kind, check.when, check.jobs) == (Kind.PING, (When.ALWAYS,), ("nightly", "weekly"))
    assert (check.last, check.title, check.problem) == (None, None, None)


def test_notifiers_are_chosen_by_name() -> None:
    assert chosen(CONFIG, ()) == ("ops", "check")
    assert chosen(CONFIG, ("check", "check")) == ("check",)
    with pytest.raises(UsageError, match="No notifier 'opps' in the configuration; the closest is 'ops'"):
        chosen(CONFIG, ("ops", "opps"))
