"""A backup of one domain waits for nobody; it and a member of a group are called in the same way."""

from __future__ import annotations

import inspect

import pytest

from tests.unit.builders import UUID
from vbackup.engine.group import Moments
from vbackup.engine.moment import Alone, Moment
from vbackup.model import GroupMember
from vbackup.stop import Stop

MEMBER = GroupMember("web", UUID, "20261123T120000Z-full")


def test_single_backup_waits_for_nobody_and_has_no_group() -> None:
    alone: Moment = Alone()
    assert alone.planned(MEMBER) is None
    alone.ready()
    done = []
    with alone.taken():
        done.append("transaction")
    alone.sent()
    alone.copied()
    assert (done, alone.group) == (["transaction"], None)


def test_failed_transaction_of_a_single_backup_is_raised() -> None:
    with pytest.raises(ValueError, match="refused"), Alone().taken():
        raise ValueError("refused")


@pytest.mark.parametrize("kind", [Alone, type(Moments(["a"], stop=Stop(), freeze_limit_s=1).member("a"))])
def test_both_kinds_of_moment_have_every_step(kind: type) -> None:
    for name, step in vars(Moment).items():
        if name.startswith("_") or not callable(step):
            continue
        given = inspect.signature(getattr(kind, name)).parameters
        assert list(given) == list(inspect.signature(step).parameters), name
    assert hasattr(kind, "group")
