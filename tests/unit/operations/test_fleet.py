"""Domains of several hosts are worked on within two limits, the hosts in turn, and one UUID never twice at once."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.operations.test_batch import behaviour, work
from vbackup.domain.fleet import FleetSelection, HostSelection
from vbackup.domain.selection import Chosen, Selection
from vbackup.errors import BusyError, DomainNotFoundError, HostUnreachableError, SameUuidError
from vbackup.operations import fleet
from vbackup.operations.batch import Batch
from vbackup.operations.fleet import Limits

__all__ = ["behaviour", "work"]  # fixtures


def part(name: str, *domains: str, **more: Any) -> HostSelection:
    """Domains of one host; "web=x" has the UUID x."""
    chosen = [Chosen(word.partition("=")[0], word.partition("=")[2] or f"{word} of {name}") for word in domains]
    return HostSelection(f"uri of {name}", name, Selection(tuple(chosen)), **more)


class Counting:
    """Counts how many domains of each host are worked on at once."""

    def __init__(self, behaviour: dict[str, Any], *domains: str) -> None:
        self.lock, self.order = threading.Lock(), list[str]()
        self.now: dict[str, int] = {}
        self.most: dict[str, int] = {}
        behaviour.update({domain: lambda domain=domain: self.enter(domain) for domain in domains})

    def enter(self, domain: str) -> None:
        keys = ("all", domain[0], domain[-1])
        with self.lock:
            self.order.append(domain)
            for key in keys:
                self.now[key] = self.now.get(key, 0) + 1
                self.most[key] = max(self.most.get(key, 0), self.now[key])
        time.sleep(0.02)
        with self.lock:
            for key in keys:
                self.now[key] -= 1


def batches(work: Batch, selected: FleetSelection) -> list[Batch]:
    return [replace(work, host_name=one.name) for one in selected.hosts]


def test_limits_hold_and_results_keep_their_order(work: Batch, behaviour: dict[str, Any]) -> None:
    names = {host: [f"{host}{number}" for number in range(6)] for host in "ab"}
    counting = Counting(behaviour, *names["a"], *names["b"])
    selected = FleetSelection((part("hv1", *names["a"]), part("hv2", *names["b"])))
    results = fleet.run(selected, batches(work, selected), Limits(3, per_host=2))
    assert [(one.host, one.domain.name) for one in results] == [
        (host, name) for host, letter in (("hv1", "a"), ("hv2", "b")) for name in names[letter]
    ]
    assert counting.most["all"] == 3
    assert (counting.most["a"], counting.most["b"]) == (2, 2)
    assert {one.uri for one in results} == {"uri of hv1", "uri of hv2"}


def test_hosts_take_turns(work: Batch, behaviour: dict[str, Any]) -> None:
    counting = Counting(behaviour, "a1", "a2", "b1", "b2")
    selected = FleetSelection((part("hv1", "a1", "a2"), part("hv2", "b1", "b2")))
    fleet.run(selected, batches(work, selected), Limits(1))
    assert counting.order == ["a1", "b1", "a2", "b2"]


def test_one_uuid_is_worked_on_once_at_a_time(work: Batch, behaviour: dict[str, Any]) -> None:
    counting = Counting(behaviour, "a-x", "b-x", "c-x", "d-y")
    selected = FleetSelection(tuple(part(f"hv{name}", f"{name}={name[-1]}") for name in ("a-x", "b-x", "c-x", "d-y")))
    results = fleet.run(selected, batches(work, selected), Limits(4))
    assert [one.error for one in results] == [None] * 4
    assert counting.most["x"] == 1
    assert counting.most["all"] == 2


def test_each_has_its_error(work: Batch, behaviour: dict[str, Any]) -> None:
    behaviour.update(b=BusyError("busy"))
    lost, twice = HostUnreachableError("uri", "refused"), SameUuidError("t", "uuid", ["hv1", "hv2"])
    selected = FleetSelection(
        (part("hv1", "a", "b", refused=((Chosen("t", "uuid"), twice),)), part("hv2", "c"), part("hv3", error=lost)),
        unknown=("nobody",),
    )
    results = fleet.run(selected, [replace(work, host_name="hv1"), lost, lost], Limits())
    found = {one.domain.name: (one.host, type(one.error)) for one in results}
    assert found == {
        "a": ("hv1", type(None)),
        "b": ("hv1", BusyError),
        "t": ("hv1", SameUuidError),
        "c": ("hv2", HostUnreachableError),
        "nobody": (None, DomainNotFoundError),
    }
    assert work.reporter.warnings == ["hv1/b: busy"]  # type: ignore[attr-defined]


def test_nothing_to_do_needs_no_thread(work: Batch) -> None:
    assert fleet.run(FleetSelection((part("hv1"),)), [work], Limits()) == []


@pytest.mark.parametrize("limits", [Limits(1), Limits(5, per_host=1)])
def test_plans_go_the_same_way(work: Batch, monkeypatch: pytest.MonkeyPatch, limits: Limits) -> None:
    from vbackup.operations import backup

    monkeypatch.setattr(backup, "dry_run", lambda request, **_given: request.domain)
    selected = FleetSelection((part("hv1", "a", "b"), part("hv2", "c")))
    plans: list[Any] = [one.made for one in fleet.dry_run(selected, batches(work, selected), limits)]
    assert plans == ["a", "b", "c"]
