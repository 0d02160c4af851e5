"""Each thread has a connection to libvirt for itself, which the next call takes over."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from vbackup.api.hosts import Hosts
from vbackup.domain import host
from vbackup.domain.linked import Linked
from vbackup.errors import HostUnreachableError, UsageError


class FakeHost:
    """A connection that can break."""

    opened: list[FakeHost]
    is_embedded = False

    def __init__(self, uri: str | None, *, linked: Linked) -> None:
        self.linked = linked
        if uri == "nowhere":
            raise HostUnreachableError(uri, "it is not there")
        self.uri, self.alive, self.closed = uri, True, 0
        self.opened.append(self)

    def is_alive(self) -> bool:
        return self.alive

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[FakeHost]:
    """All that were opened."""
    FakeHost.opened = []
    monkeypatch.setattr(host, "Host", FakeHost)
    return FakeHost.opened


def test_next_call_takes_the_connection_over(opened: list[FakeHost]) -> None:
    hosts = Hosts("qemu:///system")
    for _ in range(3):
        with hosts.one() as one:
            assert one is opened[0]  # type: ignore[comparison-overlap]
    assert [made.uri for made in opened] == ["qemu:///system"]
    hosts.close()
    hosts.close()
    assert [made.closed for made in opened] == [1]


def test_threads_that_work_at_the_same_time_have_one_each(opened: list[FakeHost]) -> None:
    hosts, together = Hosts(None), threading.Barrier(4)

    def work(_number: int) -> Any:
        with hosts.one() as one:
            together.wait(10)
            return one

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(work, range(4)))) == 4
    assert len(opened) == 4
    assert len({made.linked for made in opened}) == 1  # one SSH connection for all of them
    with hosts.one(), hosts.one():
        assert len(opened) == 4


def test_broken_connection_is_not_used_again(opened: list[FakeHost]) -> None:
    hosts = Hosts(None)
    with hosts.one():
        opened[0].alive = False
    with hosts.one() as one:
        assert one is opened[1]  # type: ignore[comparison-overlap]
    assert [made.closed for made in opened] == [1, 0]


def test_embedded_driver_is_shared(opened: list[FakeHost], monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening it again would restart it."""
    monkeypatch.setattr(FakeHost, "is_embedded", True)
    hosts = Hosts("qemu:///embed?root=/x")
    with hosts.one() as one, hosts.one() as other:
        assert one is other
    hosts.close()
    assert [made.closed for made in opened] == [1]


def test_closed_one_opens_nothing_and_keeps_nothing(opened: list[FakeHost]) -> None:
    hosts = Hosts(None)
    with hosts.one():
        hosts.close()
        assert opened[0].closed == 0
    assert opened[0].closed == 1
    with pytest.raises(UsageError, match="is closed"), hosts.one():
        pass
    assert len(opened) == 1


def test_connection_survives_an_error_of_the_call(opened: list[FakeHost]) -> None:
    hosts = Hosts(None)
    with pytest.raises(ValueError, match="the call"), hosts.one():
        raise ValueError("the call")
    with hosts.one():
        assert len(opened) == 1


def test_libvirt_that_is_not_there_can_be_there_later(opened: list[FakeHost]) -> None:
    hosts = Hosts("nowhere")
    for _ in range(2):
        with pytest.raises(HostUnreachableError), hosts.one():
            pass


def test_event_loop_is_started_once_by_threads_that_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """functools.cache alone lets both begin."""
    started, begin = [], threading.Barrier(4)
    slow = threading.Event()

    def start() -> None:
        slow.wait(0.05)
        started.append(threading.current_thread())

    import functools

    monkeypatch.setattr(host, "_started_events", functools.cache(start))

    def work(_number: int) -> None:
        begin.wait(10)
        host._start_events()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(started) == 1


@pytest.mark.parametrize(
    ("uri", "is_expected", "begun"),
    [
        ("qemu+ssh://hv1/system", True, ["qemu+ssh://hv1/system"]),
        ("qemu+ssh://hv1/system", False, []),
        (None, True, []),
    ],
)
@pytest.mark.usefixtures("opened")
def test_link_that_is_expected_is_begun_once(
    uri: str | None, is_expected: bool, begun: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    monkeypatch.setattr(Linked, "begin", lambda _linked, uri: found.append(uri))
    hosts = Hosts(uri)
    if is_expected:
        hosts.expect_link()
    with hosts.one(), hosts.one():
        pass
    hosts.close()
    assert found == begun
