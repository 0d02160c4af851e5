"""The thawer on the hypervisor, beside the watchdog on this host."""

from __future__ import annotations

from typing import Any

import pytest

from vbackup.domain.thaw_there import AFTER_S, ThawThere
from vbackup.errors import LinkLostError


class Near:
    """A watchdog that notes what it hears."""

    limit_s = 10
    is_blind = False

    def __init__(self, said: list[str]) -> None:
        self.said = said
        self.thawed_itself = False

    def reason_not_to_freeze(self) -> str | None:
        return "near"

    def may_be_left_frozen(self) -> bool:
        return True

    def freezing(self) -> None:
        self.said.append("near freezing")

    def thawed(self) -> None:
        self.said.append("near thawed")

    def has_thawed(self) -> bool:
        return self.thawed_itself


class FakeLink:
    """A link to a helper that has thawed, or has not."""

    host = "root@hv1"

    def __init__(self, said: list[str]) -> None:
        self.said = said
        self.is_lost = False
        self.unwatched = False

    def watch_thaw(self, uuid: str, limit_s: float) -> None:
        self._refuse_lost()
        self.said.append(f"there freezing {uuid} {limit_s}")

    def unwatch(self, uuid: str) -> bool:
        self._refuse_lost()
        self.said.append(f"there thawed {uuid}")
        return self.unwatched

    def has_thawed(self, _uuid: str) -> bool:
        return False

    def _refuse_lost(self) -> None:
        if self.is_lost:
            raise LinkLostError(self.host, "has ended")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def near(said: list[str]) -> Near:
    return Near(said)


@pytest.fixture
def link(said: list[str]) -> Any:
    return FakeLink(said)


def test_helper_stands_by_before_the_watchdog_and_longer(near: Near, link: Any, said: list[str]) -> None:
    thawer = ThawThere(near, link, "u")
    thawer.freezing()
    thawer.thawed()
    assert said == [f"there freezing u {10 + AFTER_S}", "near freezing", "near thawed", "there thawed u"]
    assert thawer.limit_s == 10
    assert not thawer.is_blind
    assert thawer.may_be_left_frozen()
    assert thawer.reason_not_to_freeze() == "near"
    assert not thawer.has_thawed()


def test_nothing_is_frozen_without_a_link(near: Near, link: Any, said: list[str]) -> None:
    link.is_lost = True
    thawer = ThawThere(near, link, "u")
    reason = thawer.reason_not_to_freeze()
    assert reason is not None
    assert "the SSH connection to root@hv1" in reason
    with pytest.raises(LinkLostError):
        thawer.freezing()
    assert said == []


def test_link_that_is_lost_meanwhile_does_not_hide_the_thaw(near: Near, link: Any, said: list[str]) -> None:
    thawer = ThawThere(near, link, "u")
    thawer.freezing()
    link.is_lost = True
    thawer.thawed()
    assert said[-1] == "near thawed"
    assert not thawer.has_thawed()


def test_thaw_of_the_helper_counts(near: Near, link: Any) -> None:
    thawer = ThawThere(near, link, "u")
    thawer.freezing()
    link.unwatched = True
    thawer.thawed()
    assert thawer.has_thawed()
