"""Trackers of domains that libvirt does not have any more can be forgotten; end_to_end/test_sessions has the others."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.builders import TRACKER, UUID, pull_session, session_checkpoint
from vbackup.domain.host import DomainHandle, Host
from vbackup.errors import DomainNotFoundError, UsageError
from vbackup.operations import tracker
from vbackup.report import Silent
from vbackup.sessions.record import SessionState
from vbackup.sessions.store import Store
from vbackup.sessions.trackers import Tracker
from vbackup.stop import Stop

OTHER_UUID = UUID[:-1] + ("0" if UUID[-1] != "0" else "1")


class Empty:
    """A libvirt without domains."""

    def domain(self, name: str) -> DomainHandle:
        raise DomainNotFoundError(name, "qemu:///system", "x")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "sessions")
    for uuid in (UUID, OTHER_UUID):
        with made.locked(uuid, stop=Stop()) as domain:
            domain.write_tracker(Tracker(TRACKER, "web", uuid, (session_checkpoint(0, "vda"),)))
    return made


@pytest.fixture
def forget(store: Store) -> Callable[..., Tracker]:
    def call(domain_name: str, name: str = TRACKER) -> Tracker:
        host: Any = Empty()
        return tracker.forget(
            domain_name, name, host=cast(Host, host), store=store, exclusive=False, reporter=Silent(), stop=Stop()
        )

    return call


def test_tracker_of_a_domain_that_is_gone_is_forgotten(store: Store, forget: Callable[..., Tracker]) -> None:
    open_once = pull_session("vda", expires=datetime.now(timezone.utc) + timedelta(hours=1))
    with store.locked(UUID, stop=Stop()) as domain:
        domain.write(open_once)
    assert forget(UUID).domain_uuid == UUID
    assert store.trackers(UUID) == []
    assert store.session(open_once.id).state is SessionState.FAILED
    assert forget("web").domain_uuid == OTHER_UUID
    with pytest.raises(DomainNotFoundError):
        forget("web")


def test_name_that_several_domains_had_needs_a_uuid(store: Store, forget: Callable[..., Tracker]) -> None:
    with pytest.raises(UsageError, match=OTHER_UUID):
        forget("web")
    assert len(tracker.trackers(store=store, reporter=Silent())) == 2


def test_damaged_tracker_of_a_domain_that_is_gone_is_forgotten_by_its_uuid(
    store: Store, forget: Callable[..., Tracker]
) -> None:
    (store.directory / UUID / f"tracker-{TRACKER}.json").write_text("{")
    assert forget("web").domain_uuid == OTHER_UUID
    forgotten = forget(UUID)
    assert (forgotten.domain_uuid, forgotten.checkpoints) == (UUID, ())
    assert store.tracker_names(UUID) == []


def test_domain_that_nobody_knows_is_not_found(store: Store, forget: Callable[..., Tracker]) -> None:
    for domain_name, name in (("other", TRACKER), ("web", "nobody")):
        with pytest.raises(DomainNotFoundError):
            forget(domain_name, name)
    assert len(tracker.trackers(store=store, reporter=Silent())) == 2
