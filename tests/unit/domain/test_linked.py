"""The link to a hypervisor is made once, also while libvirt connects, and never left behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

import pytest

from vbackup.domain.linked import Linked
from vbackup.errors import InterruptedBySignalError, SshError
from vbackup.remote import link
from vbackup.remote.address import Address

URI, OTHER = "qemu+ssh://root@hv1/system", "qemu+ssh://root@hv2/system"


def nothing() -> None:
    """Nobody wants to give up."""


class FakeLink:
    """A link that is made when the test lets it."""

    made: list[FakeLink]
    may_be_made: threading.Event
    error: SshError | None

    def __init__(self, address: Address, *, check: Callable[[], None]) -> None:
        self.address, self.check = address, check
        self.is_lost, self.closed = False, 0
        self.thread = threading.current_thread()
        self.made.append(self)

    def __enter__(self) -> FakeLink:
        while not self.may_be_made.wait(0.01):
            self.check()
        if self.error is not None:
            raise self.error
        return self

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(name="made", autouse=True)
def links_that_were_made(monkeypatch: pytest.MonkeyPatch) -> list[FakeLink]:
    """All of them."""
    FakeLink.made, FakeLink.may_be_made, FakeLink.error = [], threading.Event(), None
    FakeLink.may_be_made.set()
    monkeypatch.setattr(link, "Link", FakeLink)
    return FakeLink.made


def test_what_was_begun_is_taken(made: list[FakeLink]) -> None:
    linked = Linked()
    linked.begin(URI)
    linked.begin(URI)
    assert linked.link(URI, check=nothing) is made[0]  # type: ignore[comparison-overlap]
    assert linked.link(URI, check=nothing) is made[0]  # type: ignore[comparison-overlap]
    linked.begin(URI)
    linked.close()
    linked.close()
    assert [(one.address.host, one.closed) for one in made] == [("hv1", 1)]
    assert made[0].thread is not threading.current_thread()


@pytest.mark.parametrize("uri", ["qemu:///system", "qemu+tls://hv1/system", "qemu+ssh://hv1:port/system"])
def test_nothing_is_begun_without_an_address(made: list[FakeLink], uri: str) -> None:
    linked = Linked()
    linked.begin(uri)
    linked.close()
    assert made == []


def test_link_to_another_host_is_ended(made: list[FakeLink]) -> None:
    linked = Linked()
    linked.begin(URI)
    assert linked.link(OTHER, check=nothing) is made[1]  # type: ignore[comparison-overlap]
    assert [(one.address.host, one.closed) for one in made] == [("hv1", 1), ("hv2", 0)]


def test_link_that_nobody_waits_for_is_given_up(made: list[FakeLink]) -> None:
    FakeLink.may_be_made.clear()
    linked = Linked()
    linked.begin(URI)
    linked.close()
    made[0].thread.join(5)
    assert not made[0].thread.is_alive()
    assert made[0].closed == 0


def test_stop_is_heard_while_another_thread_makes_the_link(made: list[FakeLink]) -> None:
    def stop() -> None:
        raise InterruptedBySignalError(signal.SIGINT)

    FakeLink.may_be_made.clear()
    linked = Linked()
    linked.begin(URI)
    with pytest.raises(InterruptedBySignalError):
        linked.link(URI, check=stop)
    linked.close()
    assert len(made) == 1


def test_error_is_that_of_whoever_needs_the_link(made: list[FakeLink]) -> None:
    FakeLink.error = SshError("hv1", "it is not there", try_first="ssh hv1 true")
    linked = Linked()
    linked.begin(URI)
    with pytest.raises(SshError, match="it is not there"):
        linked.link(URI, check=nothing)
    FakeLink.error = None
    assert linked.link(URI, check=nothing) is made[1]  # type: ignore[comparison-overlap]


def test_error_that_nobody_needs_is_none() -> None:
    FakeLink.error = SshError("hv1", "it is not there", try_first="ssh hv1 true")
    linked = Linked()
    linked.begin(URI)
    linked.close()
