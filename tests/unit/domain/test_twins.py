"""What runs is the machine; several that run are several machines; of those that are off nothing tells."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.builders import backup_id
from vbackup.domain import standby_xml, twins
from vbackup.domain.twins import State, Twin
from vbackup.errors import DomainNotFoundError, MigratingError, MonitorError

RUNNING, ARRIVING, OFF, GONE, STANDBY = State.RUNNING, State.ARRIVING, State.OFF, State.GONE, State.STANDBY


def found(*states: State) -> list[Twin]:
    return [Twin("web", "uuid of web", f"hv{number}", state) for number, state in enumerate(states, start=1)]


def what(verdict: twins.Verdict) -> str:
    return "error" if verdict.error is not None else "left out" if verdict.left_out is not None else "backed up"


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ((RUNNING, OFF), ("backed up", "left out")),
        ((OFF, RUNNING, OFF), ("left out", "backed up", "left out")),
        ((RUNNING, RUNNING), ("backed up", "backed up")),
        ((RUNNING, RUNNING, OFF), ("backed up", "backed up", "left out")),
        ((OFF, OFF), ("error", "error")),
        ((RUNNING, ARRIVING), ("backed up", "left out")),
        ((OFF, ARRIVING), ("left out", "backed up")),  # its backup says that it is migrating
        ((OFF, GONE), ("backed up", "backed up")),  # and the one that is gone fails by itself
        ((OFF, OFF, GONE), ("error", "error", "backed up")),
        ((OFF, STANDBY), ("backed up", "left out")),
        ((RUNNING, STANDBY, OFF), ("backed up", "left out", "left out")),
        ((OFF, STANDBY, OFF), ("error", "left out", "error")),
    ],
)
def test_verdicts(states: tuple[State, ...], expected: tuple[str, ...]) -> None:
    assert tuple(map(what, twins.judge(found(*states)))) == expected


def test_standby_that_has_taken_over_needs_no_new_uuid() -> None:
    """It is the same machine, so nobody is advised to give it another identity."""

    def pair(original: State, standby: State) -> list[Twin]:
        return [Twin("web", "uuid", "hv1", original), Twin("web", "uuid", "hv2", standby, has_taken_over=True)]

    left, kept = twins.judge(pair(OFF, RUNNING))
    assert (left.left_out, kept.left_out) == ("it is off here, and its standby on hv2 has taken over", None)
    kept, left = twins.judge(pair(RUNNING, OFF))
    assert left.left_out == "it is a standby that has taken over, but is off here, and the original runs on hv1"
    for verdict in twins.judge(pair(OFF, OFF)):
        assert "that on hv2 is a standby that has taken over" in str(verdict.error)
        assert "UUID" not in str(verdict.error)
    said = twins.remark(pair(RUNNING, RUNNING))
    assert said is not None
    assert "its standby on hv2 has taken over, but the original runs, too" in said
    assert "UUID" not in said


@pytest.mark.parametrize(
    ("state", "expected"), [(None, False), (standby_xml.State.READY, False), (standby_xml.State.ACTIVE, True)]
)
def test_definition_says_whether_it_has_taken_over(state: standby_xml.State | None, expected: bool) -> None:
    text = "<domain><name>web</name></domain>"
    if state is not None:
        mark = standby_xml.Mark(state, "0123456789ab", backup_id(1), "/standby")
        text = standby_xml.made(text, mark)[0]
    if state is standby_xml.State.ACTIVE:
        text = standby_xml.active(text)

    class FakeHost:
        def domain(self, uuid: str) -> Any:
            if uuid != "uuid":
                raise DomainNotFoundError(uuid, "here", "look")
            return self

        def live_xml(self) -> str:
            return text

    host: Any = FakeHost()
    assert twins.has_taken_over(host, "uuid") is expected
    assert not twins.has_taken_over(host, "gone")


def test_sentences_name_the_hosts() -> None:
    _, left = twins.judge(found(RUNNING, OFF))
    assert left.left_out is not None
    assert "it is off here and runs on hv1" in left.left_out
    _, arriving = twins.judge(found(RUNNING, ARRIVING))
    assert arriving.left_out == "it is migrating to this host from hv1"
    refused, _ = twins.judge(found(OFF, OFF))
    assert "off on hv1 and hv2, with the same UUID uuid of web" in str(refused.error)
    said = twins.remark(found(RUNNING, OFF, RUNNING))
    assert said is not None
    assert "runs on hv1 and hv3" in said
    assert twins.remark(found(RUNNING, OFF)) is None


@pytest.mark.parametrize(
    ("error", "active", "expected"),
    [
        (None, True, RUNNING),
        (None, False, OFF),
        (None, False, STANDBY),
        (MigratingError("web", incoming=True), True, ARRIVING),
        (MigratingError("web", incoming=False), True, RUNNING),
        (MonitorError("x"), True, RUNNING),
        (DomainNotFoundError("web", "here", "look"), True, GONE),
    ],
    ids=["runs", "off", "waits", "comes", "goes", "unknown", "gone"],
)
def test_state(error: Exception | None, active: bool, expected: State) -> None:
    class Handle:
        def is_active(self) -> bool:
            return active

        def live_xml(self) -> str:
            text = "<domain><name>web</name></domain>"
            if expected is not STANDBY:
                return text
            mark = standby_xml.Mark(standby_xml.State.READY, "0123456789ab", backup_id(1), "/standby")
            return standby_xml.made(text, mark)[0]

        def refuse_migration(self) -> None:
            if error is not None:
                raise error

    class FakeHost:
        def domain(self, _uuid: str) -> Handle:
            if isinstance(error, DomainNotFoundError):
                raise error
            return Handle()

    host: Any = FakeHost()
    assert twins.state(host, "uuid of web") is expected
