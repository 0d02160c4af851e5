"""Batch domains in one command: all, some, one that fails, a group at one moment, a rate for all."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.end_to_end.chains import END_BYTES
from tests.lab import DiskSpec, Lab, Machine, compare, domain_xml
from vbackup.domain import source
from vbackup.domain.passthrough import Passthrough
from vbackup.errors import QmpError
from vbackup.model import Consistency
from vbackup.repository.repository import Repository

if TYPE_CHECKING:
    from tests.conftest import Command, Outcome

MIB = 1024 * 1024
Execute = Callable[..., Any]


class Fleet:
    """Some domains of one disk, a repository, and the command for them."""

    def __init__(self, lab: Lab, command: Command, repository: Path, tmp_path: Path) -> None:
        self.lab, self.command, self.repository, self.tmp_path = lab, command, repository, tmp_path
        self.machines: dict[str, Machine] = {}
        self.specs: dict[str, DiskSpec] = {}

    def boot(self, *names: str) -> None:
        for name in names:
            number = len(self.specs)
            self.specs[name] = DiskSpec(self.tmp_path / f"{number}.qcow2", size="8M")
            self.machines[name] = self.lab.boot(name, [self.specs[name]])
            self.machines[name].write("vda", f"write -P {number + 1} 0 4M")

    def backup(self, *arguments: str | Path, status: int = 0) -> Outcome:
        return self.command(
            "-c", self.lab.uri, "-q", "backup", *arguments, "-r", self.repository, "--json", status=status
        )

    def states(self) -> dict[str, Any]:
        return {name: machine.state() for name, machine in self.machines.items() if machine.handle.is_active()}

    def entries(self) -> list[str]:
        """All that is in the repository but locks and names."""
        return sorted(
            str(path.relative_to(self.repository))
            for path in self.repository.glob("*/*")
            if path.name not in ("lock", "domain.json")
        )

    def restore(self, name: str) -> Path:
        output = self.tmp_path / f"out-{self.machines[name].handle.uuid}-{time.monotonic_ns()}"
        self.command("-q", "restore", self.machines[name].handle.uuid, "-r", self.repository, "--output", output)
        return output / "vda.qcow2"

    def expect_exact(self, *names: str) -> None:
        """The newest backup of each is what its disk holds; they must not have been written to since. Ends them."""
        for name in names:
            restored = self.restore(name)
            self.machines[name].destroy()
            compare(restored, self.specs[name].path)


@pytest.fixture
def fleet(lab: Lab, command: Command, repository: Path, tmp_path: Path) -> Fleet:
    return Fleet(lab, command, repository, tmp_path)


@contextmanager
def executing(wrapper: Callable[[Execute, Passthrough, str, Any], Any]) -> Iterator[None]:
    """What goes to a QEMU goes through ``wrapper``, which calls its first argument to send it."""
    original = Passthrough.execute

    def execute(monitor: Passthrough, command: str, arguments: Any = None, *, fd: int | None = None) -> Any:
        def send(changed: Any = arguments) -> Any:
            return original(monitor, command, changed, fd=fd)

        return wrapper(send, monitor, command, arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Passthrough, "execute", execute)
        yield


def name_of(monitor: Passthrough) -> str:
    return monitor._handle.name


def by_name(document: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry for entry in document["domains"]}


# which domains, and what each is worth


def test_all_domains_running_and_off_and_what_is_left_out(fleet: Fleet) -> None:
    fleet.boot("web-1", "web-2", "off", "out")
    fleet.machines["off"].destroy()
    fleet.lab.start(domain_xml("diskless", []))
    done = fleet.backup("--all", "--exclude", "ou?").document
    assert done["schema"] == "vbackup.backups/1"
    assert [(one["name"], one["backup"]["consistency"]) for one in done["domains"]] == [
        ("off", "offline"),
        ("web-1", "crash"),
        ("web-2", "crash"),
    ]
    assert [(one["name"], one["reason"]) for one in done["left_out"]] == [
        ("diskless", "it has no disk"),
        ("out", "excluded by the user"),
    ]
    assert (done["done"], done["failed"], done["group"]) == (3, 0, None)
    fleet.machines["web-2"].write("vda", "write -P 9 1M 64k")
    again = by_name(fleet.backup("--all", "--exclude", "out").document)
    assert {name: one["backup"]["level"] for name, one in again.items()} == dict.fromkeys(again, "incremental")
    assert again["web-2"]["backup"]["disks"][0]["copied_bytes"] == 65536 + END_BYTES
    fleet.expect_exact("web-1", "web-2", "off")


def test_one_of_several_that_fails_does_not_hinder_the_others(fleet: Fleet) -> None:
    fleet.boot("web-1", "web-2", "db", "käse", "[x]")
    before = fleet.machines["web-2"].state()

    def refuse(send: Execute, monitor: Passthrough, command: str, _arguments: Any) -> Any:
        if command == "transaction" and name_of(monitor) == "web-2":
            raise QmpError("transaction", "GenericError", "refused for the test")
        return send()

    with executing(refuse):
        # One that is named twice counts once, and the name of a domain is no pattern.
        outcome = fleet.backup("web-*", "nobody", "k*", "[x]", "web-1", fleet.machines["käse"].handle.uuid, status=3)
    done = by_name(outcome.document)
    assert list(done) == ["web-1", "web-2", "nobody", "käse", "[x]"]
    assert {name: one["error"]["status"] for name, one in done.items() if "error" in one} == {"web-2": 1, "nobody": 4}
    assert "vbackup: warning: web-2: QEMU refused transaction: refused for the test" in outcome.stderr
    assert "vbackup: 2 of 5 domains failed." in outcome.stderr
    assert fleet.machines["web-2"].state() == before
    assert len(fleet.entries()) == 3
    fleet.expect_exact("web-1", "käse", "[x]")


def test_one_name_is_as_ever_also_if_it_looks_like_a_pattern(fleet: Fleet) -> None:
    fleet.boot("[x]", "x")
    done = fleet.backup("[x]").document
    assert (done["schema"], done["domain"]["name"]) == ("vbackup.backup/1", "[x]")
    assert "group" not in done
    assert fleet.backup("--domain", "x").document["schema"] == "vbackup.backup/1"
    assert [one["name"] for one in fleet.backup("[xy]").document["domains"]] == ["x"]


def test_pattern_without_a_domain_is_told_before_anything_is_begun(fleet: Fleet) -> None:
    fleet.boot("web-1")
    outcome = fleet.backup("w?b", status=4)
    assert outcome.document["schema"] == "vbackup.error/1"
    assert "No domain matches 'w?b'" in outcome.stderr
    assert fleet.entries() == []
    assert fleet.backup("--all", "--exclude", "*", status=4).document["status"] == 4
    beside = fleet.backup("web-1", "w?b")
    assert "warning: The pattern w?b matches no domain" in beside.stderr
    assert (beside.document["done"], beside.document["unmatched"]) == (1, ["w?b"])


def test_domain_that_is_gone_when_its_turn_comes(fleet: Fleet) -> None:
    fleet.boot("web-1", "web-2", "web-3")

    def remove(send: Execute, monitor: Passthrough, command: str, _arguments: Any) -> Any:
        if command == "transaction" and name_of(monitor) == "web-1":
            fleet.lab.remove(fleet.machines["web-2"])
        return send()

    with executing(remove):
        done = by_name(fleet.backup("--all", "--parallel", "1", status=3).document)
    assert done["web-2"]["error"]["error"] == "DomainNotFoundError"
    fleet.expect_exact("web-1", "web-3")


def test_domain_that_another_run_has_is_busy_and_the_others_are_not(fleet: Fleet) -> None:
    fleet.boot("web-1", "web-2")
    with Repository.open(fleet.repository).lock(fleet.machines["web-2"].handle.uuid):
        done = by_name(fleet.backup("web-?", status=3).document)
    assert (done["web-2"]["error"]["error"], done["web-2"]["error"]["status"]) == ("BusyError", 8)
    assert "backup" in done["web-1"]


def test_no_more_at_once_than_was_asked_for(fleet: Fleet) -> None:
    fleet.boot("web-1", "web-2", "web-3", "web-4")
    busy: set[str] = set()
    most = [0]

    def watch(send: Execute, monitor: Passthrough, command: str, arguments: Any) -> Any:
        if command == "transaction":
            busy.add(name_of(monitor))
            most[0] = max(most[0], len(busy))
            time.sleep(0.3)  # long enough for others to come
        if command == "blockdev-del":
            busy.discard(name_of(monitor))
        return send()

    with executing(watch):
        fleet.backup("--all", "--parallel", "2")
    assert most == [2]


def test_dry_run_of_several_keeps_nothing(fleet: Fleet) -> None:
    fleet.boot("web-1", "web-2")
    before = fleet.states()
    done = fleet.backup("--all", "--dry-run").document
    assert [one["plan"]["level"] for one in done["domains"]] == ["full", "full"]
    assert (fleet.states(), fleet.entries()) == (before, [])


def test_summary_and_progress_name_the_domains(fleet: Fleet) -> None:
    fleet.boot("web-1", "web-2")
    said = fleet.command("-c", fleet.lab.uri, "backup", "--all", "-r", fleet.repository, "--progress", "json")
    assert said.stdout.splitlines()[0].split() == ["DOMAIN", "LEVEL", "COPIED", "SIZE", "TIME", "RESULT"]
    assert [line.split()[:2] for line in said.stdout.splitlines()[1:3]] == [["web-1", "full"], ["web-2", "full"]]
    assert "2 of 2 domains" in said.stdout
    events = [json.loads(line) for line in said.stderr.splitlines()]
    assert {event["domain"] for event in events} == {"web-1", "web-2"}
    assert {event["dev"] for event in events if event["event"] == "progress"} == {"vda"}
    lines = fleet.command("-c", fleet.lab.uri, "backup", "--all", "-r", fleet.repository).stderr.splitlines()
    assert all(re.match(r"[-0-9]{10} [:0-9]{8} vbackup: web-[12]: ", line) for line in lines)


# a group


class Writer:
    """Writes a counter to one domain after the other, as a client would that has them wait for each other."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.gates = {name: threading.Lock() for name in fleet.machines}
        self.count = 0
        self._end = threading.Event()
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._end.set()
        self._thread.join()
        assert not self._failed

    def _run(self) -> None:
        try:
            while not self._end.is_set():
                self.count = self.count % 250 + 1
                for name, machine in self.fleet.machines.items():
                    with self.gates[name]:
                        machine.write("vda", f"write -P {self.count} 6M 512")
        except BaseException as err:  # noqa: BLE001 - told by the main thread
            self._failed.append(err)

    @contextmanager
    def freezing(self) -> Iterator[None]:
        """A backup of a domain freezes the writer as it would freeze a guest; the last one's agent is slow."""
        gates = self.gates

        @contextmanager
        def frozen(opened: source.RunningSource, *_args: Any, **_options: Any) -> Iterator[Any]:
            if opened.handle.name == list(gates)[-1]:
                time.sleep(0.5)
            with gates[opened.handle.name]:
                yield source.Freeze(Consistency.FILESYSTEM, 1)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(source.RunningSource, "frozen", frozen)
            yield

    def counters(self) -> list[int]:
        """What is in the newest backup of each domain, in the order in which it was written."""
        found = []
        for name in self.fleet.machines:
            raw = self.fleet.restore(name).with_suffix(".raw")
            os.system(f"qemu-img convert -O raw {raw.with_suffix('.qcow2')} {raw}")
            found.append(raw.read_bytes()[6 * MIB])
        return found


def is_one_moment(counters: list[int]) -> bool:
    """Each domain is written after the one before it: at any moment it is as far, or one behind."""
    behind = [(counters[0] - one) % 250 for one in counters]
    return behind == sorted(behind) and behind[-1] <= 1


def test_group_is_of_one_moment_and_one_after_the_other_is_not(fleet: Fleet) -> None:
    fleet.boot("a", "b", "c", "d")
    with Writer(fleet) as writer, writer.freezing():
        for _ in range(3):
            done = fleet.backup("a", "b", "c", "d", "--group").document
            counters = writer.counters()
            assert is_one_moment(counters), counters
        fleet.backup("a", "b", "c", "d", "--parallel", "1")
        assert not is_one_moment(writer.counters())  # which is what this test would see
    group = done["group"]
    assert group["spread_ms"] > 0
    for one in done["domains"]:
        assert one["backup"]["group"] == group
        assert one["backup"]["consistency"] == "filesystem"
        shown = fleet.command("show", one["name"], "-r", fleet.repository, "--backup", one["backup"]["id"], "--json")
        assert shown.document["group"] == group
    assert {(one["domain"]["name"], one["id"]) for one in group["members"]} == {
        (one["name"], one["backup"]["id"]) for one in done["domains"]
    }


def test_group_has_domains_that_are_off_too(fleet: Fleet) -> None:
    fleet.boot("on", "off")
    fleet.machines["off"].destroy()
    done = by_name(fleet.backup("--all", "--group").document)
    assert {name: one["backup"]["consistency"] for name, one in done.items()} == {"on": "crash", "off": "offline"}
    fleet.expect_exact("on", "off")


@pytest.mark.parametrize(("where", "status"), [("blockdev-add", 7), ("transaction", 1), ("job", 7)])
def test_group_of_which_one_fails_leaves_nothing_of_any(fleet: Fleet, where: str, status: int) -> None:
    fleet.boot("a", "b", "c")
    fleet.backup("--all")
    for machine in fleet.machines.values():
        machine.write("vda", "write -P 7 2M 4M")
    before, entries = fleet.states(), fleet.entries()
    sent: list[str] = []

    def fail(send: Execute, monitor: Passthrough, command: str, arguments: Any) -> Any:
        if command == "transaction":
            sent.append(name_of(monitor))
        if name_of(monitor) != "b":
            return send()
        if command == where:
            raise QmpError(command, "GenericError", "refused for the test")
        if command == "blockdev-add" and where == "job":
            rules = [{"event": "pwritev", "iotype": "write", "errno": 5, "once": False, "state": 3}]
            states = [{"event": "pwritev", "state": at, "new_state": at + 1} for at in (1, 2)]
            file = {"driver": "blkdebug", "image": arguments["file"], "inject-error": rules, "set-state": states}
            return send({**arguments, "file": file})
        return send()

    with executing(fail):
        outcome = fleet.backup("a", "b", "c", "--group", status=status)
    done = by_name(outcome.document)
    assert {name: one["error"]["error"] for name, one in done.items() if name != "b"} == {
        "a": "GroupError",
        "c": "GroupError",
    }
    assert {one["error"]["status"] for one in done.values()} == {status}
    assert done["a"]["error"]["evidence"]["domain"] == "b"
    assert outcome.stderr.splitlines()[-1] == "vbackup: Domain b failed; no backup of the group was kept."
    assert "Domain b of the same group failed" in done["c"]["error"]["message"]
    assert (fleet.states(), fleet.entries()) == (before, entries)
    assert (where == "blockdev-add") == (not sent)  # before the moment nothing of any is begun
    again = fleet.backup("a", "b", "c", "--group").document
    assert {one["backup"]["disks"][0]["copied_bytes"] for one in again["domains"]} == {4 * MIB + END_BYTES}
    fleet.expect_exact("a", "b", "c")


def test_group_with_a_domain_that_is_not_there_is_not_begun(fleet: Fleet) -> None:
    fleet.boot("a")
    assert "No domain 'nobody'" in fleet.backup("a", "nobody", "--group", status=4).stderr
    assert fleet.entries() == []


def test_members_that_copy_end_when_another_one_fails(fleet: Fleet) -> None:
    """At 64 KiB/s they would go on for two minutes."""
    fleet.boot("a", "b")
    before = fleet.states()

    def cancel_b(send: Execute, monitor: Passthrough, command: str, _arguments: Any) -> Any:
        reply = send()
        if command == "query-jobs" and name_of(monitor) == "b" and reply and reply[0]["status"] == "running":
            Passthrough.execute(monitor, "job-cancel", {"id": reply[0]["id"]})
        return reply

    begun = time.monotonic()
    with executing(cancel_b):
        outcome = fleet.backup("a", "b", "--group", "--speed", "64k", status=1)
    assert time.monotonic() - begun < 60
    assert by_name(outcome.document)["a"]["error"]["error"] == "GroupError"
    assert (fleet.states(), fleet.entries()) == (before, [])


# a signal, a rate


@pytest.mark.parametrize("options", [("--parallel", "2"), ("--group",)])
def test_signal_unwinds_all_in_seconds(fleet: Fleet, options: tuple[str, ...]) -> None:
    fleet.boot("a", "b", "c")
    before = fleet.states()
    copying: set[str] = set()
    signalled: list[float] = []

    def terminate(send: Execute, monitor: Passthrough, command: str, _arguments: Any) -> Any:
        reply = send()
        if command == "query-jobs" and any(job["status"] == "running" for job in reply):
            copying.add(name_of(monitor))
            if len(copying) >= 2 and not signalled:
                signalled.append(time.monotonic())
                os.kill(os.getpid(), signal.SIGTERM)
        return reply

    with executing(terminate):
        outcome = fleet.backup("a", "b", "c", "--speed", "64k", *options, status=143)
    assert time.monotonic() - signalled[0] < 5
    assert {one["error"]["status"] for one in outcome.document["domains"]} == {143}
    assert outcome.stderr == "vbackup: Stopped by SIGTERM; 3 of 3 domains not backed up.\n"
    assert (fleet.states(), fleet.entries()) == (before, [])


def test_rate_of_all_is_shared_out_and_never_exceeded(fleet: Fleet) -> None:
    """24 MiB at 6 MiB/s; the domains come and go two at a time, and whoever is alone has all of it."""
    fleet.boot("a", "b", "c")
    total = 6 * MIB
    speeds: dict[str, int] = {}
    lock = threading.Lock()
    sums: list[int] = []
    sole: list[int] = []

    def watch(send: Execute, _monitor: Passthrough, command: str, arguments: Any) -> Any:
        with lock:
            if command == "transaction":
                jobs = [one["data"] for one in arguments["actions"] if one["type"] == "blockdev-backup"]
                speeds.update((job["job-id"], job["speed"]) for job in jobs)
            if command == "block-job-set-speed":
                speeds[arguments["device"]] = arguments["speed"]
            if command == "job-finalize":
                speeds.pop(arguments["id"], None)
            if command in ("transaction", "block-job-set-speed"):
                sums.append(sum(speeds.values()))
                if len(speeds) == 1:
                    sole.append(next(iter(speeds.values())))
        return send()

    begun = time.monotonic()
    with executing(watch):
        fleet.backup("a", "b", "c", "--parallel", "2", "--total-speed", "6M")
    # Each job begins with a burst, and so does a change of its speed; how long that lasts depends on who runs when.
    assert time.monotonic() - begun > 1
    assert max(sums) <= total + len(fleet.machines)  # a job that has to wait for its part has 1 byte/s until then
    assert sole[-1] == total
    fleet.expect_exact("a", "b", "c")


def test_rate_of_all_is_for_one_domain_too(fleet: Fleet) -> None:
    fleet.boot("a")
    speeds: list[int] = []

    def watch(send: Execute, _monitor: Passthrough, command: str, arguments: Any) -> Any:
        if command == "transaction":
            speeds.append(arguments["actions"][-1]["data"]["speed"])
        return send()

    with executing(watch):
        fleet.backup("a", "--total-speed", "100M", "--speed", "30M")
        fleet.backup("a", "--total-speed", "100M")
    assert speeds == [30 * MIB, 100 * MIB]
