"""The checker agrees with QEMU: what it refuses QEMU refuses, what it lets through fits QEMU's schema.

QEMU is asked with a trailing abort, which makes it prepare everything and undo it.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from tests.contract.conftest import MIB, Bench, Machine, make_machine
from tests.fake_qemu import FakeQemu
from tests.strategies import JSON, Names, Transaction, mutated, transaction
from tests.transactions import (
    ACCEPTED,
    EXISTING,
    NODES,
    REFUSED,
    SNAPSHOTS,
    Refused,
    backup,
    bitmap,
    merge,
    snapshot,
    snapshot_file,
)
from vbackup.errors import ConnectionLostError, DomainGoneError, QmpError, TransactionError
from vbackup.qapi import actions, checker, wording
from vbackup.qapi.actions import blame
from vbackup.qapi.schema import Schema

ABORT = actions.Abort().document()
ABORTED = "Transaction aborted using Abort action"
FAKED = tuple(kind for kind in actions.TYPES if "snapshot" not in kind and kind != "drive-backup")
#: QEMU's words where arguments do not fit its schema. "expects" is of integers narrower than introspection tells.
SCHEMA = re.compile(r"^(Invalid parameter type|Parameter .* (is missing|is unexpected|does not accept value))|JSON")
#: And where a rule of vbackup.qapi.rules should have known.
RULES = re.compile(
    "^(Bitmap name|Granularity|Bitmap already exists|Dirty bitmap|Bitmap '.*' (could not be found|is currently in use)"
    "|[Bb]itmap sync mode|must provide a valid bitmap|Cannot specify bitmap|sync mode|Source and target cannot be"
    "|max-workers|max-chunk must|New overlay node-name missing|Name is empty|Action '|Parameter .* expects"
    "|Could not create node: (Invalid node-name|Node name too long))"
)


class Trial:
    """A machine with the nodes and bitmaps of tests.transactions."""

    def __init__(self, bench: Bench, kinds: tuple[str, ...]) -> None:
        self.bench = bench
        self.kinds = kinds
        self.is_fake = isinstance(bench.monitor, FakeQemu)
        for name in (*NODES, "overlay"):
            bench.node(name)
        bench.node("small", size_bytes=MIB)
        bench.node("raw", "raw")
        for node, names in EXISTING.items():
            for name in names:
                bench.execute("transaction", actions=[actions.BlockDirtyBitmapAdd(node, name).document()])
        self.schema = Schema(bench.execute("query-qmp-schema"))
        self.files = [str(bench.image()) for _ in range(2)]

    def ask(self, arguments: dict[str, Any]) -> str | None:
        """QEMU's error, None if it would have carried the transaction out."""
        if isinstance(self.bench.monitor, FakeQemu):
            self.bench.monitor.sent.clear()
        listed = arguments.get("actions")
        given = {**arguments, "actions": [*listed, ABORT]} if isinstance(listed, list) else arguments
        try:
            self.bench.monitor.execute("transaction", given)
        except QmpError as err:
            has_abort = isinstance(listed, list) and ABORT in listed
            if "'abort' does not support" in err.description and not has_abort:
                # Since QEMU 8.1 grouped is refused beside abort as well, before anything else is looked at. As no
                # other action was named, they all support it: the check reports what is wrong with them without.
                return self.ask({name: value for name, value in arguments.items() if name != "properties"})
            return None if err.description == ABORTED and not has_abort else err.description
        assert not isinstance(listed, list), "the abort was not heeded"
        return None

    def check(self, arguments: Any) -> TransactionError | None:
        try:
            checker.check(arguments, self.schema, existing=EXISTING)
        except TransactionError as err:
            return err
        return None

    def names(self) -> Names:
        return Names(
            nodes=st.sampled_from([*NODES[:2], *NODES[:2], "target-one", "no-such-node"]),
            bitmaps=st.sampled_from(["old", "other", "new", "newer", "old", "other", "new", "newer", ""]),
            targets=st.sampled_from([*NODES, "target-one", "target-two", "small", "no-such-node"]),
            jobs=st.sampled_from(["j", "k", "l", "m", "2 j"]),
            overlays=st.sampled_from(["overlay", "overlay", "two", "no-such-node"]),
            new_nodes=st.sampled_from(["n1", "n2", "one", "2 n", "n" * 32]),
            target_files=st.sampled_from([self.files[0], "/nowhere/target.qcow2"]),
            overlay_files=st.sampled_from([self.files[1], "/nowhere/overlay.qcow2"]),
            snapshots=st.sampled_from(["s", ""]),
        )


@pytest.fixture(scope="module", params=("fake", "socket", "passthrough"))
def trial(request: pytest.FixtureRequest) -> Iterator[Trial]:
    with make_machine(request.param, request) as machine:
        yield Trial(Bench(machine), FAKED if request.param == "fake" else tuple(actions.TYPES))


@pytest.mark.parametrize("case", [*REFUSED, *SNAPSHOTS], ids=lambda case: case.name)
def test_what_a_rule_refuses_qemu_refuses(trial: Trial, case: Refused) -> None:
    if not {action["type"] for action in case.actions} <= set(trial.kinds):
        pytest.skip("the fake takes no snapshots")
    refused = trial.check(case.arguments())
    assert refused is not None
    assert refused.path == case.path
    if kills(case.arguments()) and not trial.is_fake:
        pytest.skip("QEMU 7.2 would crash, see test_enable_that_can_end_qemu_is_refused")
    description = trial.ask(case.arguments())
    assert description is not None
    assert blame.failing_index(case.actions, description) == case.blamed, description


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_looks_odd_is_not_refused(trial: Trial, name: str) -> None:
    arguments = {"actions": list(ACCEPTED[name])}
    assert trial.check(arguments) is None
    assert trial.ask(arguments) is None


@pytest.mark.parametrize(
    "action",
    [
        {"type": "block-dirty-bitmap-add", "data": {"node": 5, "name": "x"}},
        {"type": "block-dirty-bitmap-add", "data": {"node": "one"}},
        {"type": "block-dirty-bitmap-add", "data": {"node": "one", "name": "x", "granularity": 1.5}},
        {"type": "block-dirty-bitmap-add", "data": {"node": "one", "name": "x", "granularity": None}},
        {"type": "block-dirty-bitmap-add", "data": {"node": "one", "name": "x", "nope": 1}},
        {"type": "block-dirty-bitmap-merge", "data": {"node": "one", "target": "old", "bitmaps": [5]}},
        {"type": "block-dirty-bitmap-merge", "data": {"node": "one", "target": "old", "bitmaps": [{}]}},
        {"type": "block-dirty-bitmap-merge", "data": {"node": "one", "target": "old", "bitmaps": "old"}},
        {"type": "blockdev-backup", "data": {"device": "one", "target": "two", "sync": "ful"}},
        {"type": "blockdev-backup", "data": {"device": "one", "target": "two", "sync": "full", "x-perf": []}},
        {"type": "no-such-action", "data": {}},
        {"type": "abort", "data": {"x": 1}},
        {"type": "abort"},
        {"data": {}},
        {"type": "abort", "data": {}, "more": 1},
    ],
    ids=str,
)
def test_what_does_not_fit_the_schema_is_refused_and_blamed(trial: Trial, action: dict[str, Any]) -> None:
    given = [actions.BlockDirtyBitmapAdd("two", "x").document(), action]
    refused = trial.check({"actions": given})
    assert refused is not None
    assert refused.action == 1
    description = trial.ask({"actions": given})
    assert description is not None
    assert SCHEMA.search(description) or "expects" in description
    assert blame.failing_index(given, description) == 1


def test_first_abort_is_blamed(trial: Trial) -> None:
    given = [actions.BlockDirtyBitmapAdd("two", "x").document(), ABORT, ABORT]
    description = trial.ask({"actions": given})
    assert description == ABORTED
    assert blame.failing_index(given, description) == 1


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (bitmap("add", "raw", "x", persistent=True), "persistent"),
        (bitmap("add", "no-such-node", "x"), "no-such-node"),
        (bitmap("clear", "no-such-node", "x"), "no-such-node"),
        (merge("one", "old", ("no-such-node", "x")), "no-such-node"),
        (backup("no-such-node"), "no-such-node"),
        (backup(target="no-such-node"), "no-such-node"),
        (backup(filter_node_name="overlay"), "overlay"),
        (snapshot("one", "no-such-node"), "no-such-node"),
        (snapshot_file(device="no-such-device"), "no-such-device"),
        (snapshot_file(node_name="one", snapshot_node_name="overlay"), None),
        (snapshot_file(node_name="one", snapshot_node_name="x", mode="existing"), "/nowhere/overlay.qcow2"),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else str(value),
)
def test_what_only_qemu_can_know_is_blamed(trial: Trial, action: dict[str, Any], said: str | None) -> None:
    """The checker lets it pass: nodes and files are not its business. The words of some name nothing."""
    if action["type"] not in trial.kinds:
        pytest.skip("the fake takes no snapshots")
    given = [bitmap("clear", "one", "old"), action, bitmap("disable", "one", "other")]
    assert trial.check({"actions": given}) is None
    description = trial.ask({"actions": given})
    assert description is not None
    assert said is None or said in description
    assert blame.failing_index(given, description) == (None if said is None else 1), description


EXAMPLES = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_checker_and_qemu_agree_on_any_transaction(trial: Trial) -> None:
    counts = {"both accept": 0, "both refuse": 0, "only qemu": 0}

    @EXAMPLES
    @given(transaction(trial.names(), trial.kinds, max_size=5))
    def agree(made: Transaction) -> None:
        arguments = made.document()
        refused = trial.check(arguments)
        if kills(arguments):
            assert refused is not None or checker.check(arguments, trial.schema, existing=EXISTING), (
                "not even a warning"
            )
            return
        description = trial.ask(arguments)
        if refused is not None:
            assert description is not None, f"QEMU would have done it: {refused}"
            counts["both refuse"] += 1
            return
        if description is None:
            counts["both accept"] += 1
            return
        counts["only qemu"] += 1
        assert not SCHEMA.search(description), description
        assert not RULES.search(description), description
        _assert_blame_is_right(trial, arguments, description)

    before = trial.bench.state()
    agree()
    assert trial.bench.state() == before
    # Of each there must be some, or nothing has been shown.
    assert min(counts.values()) >= 5, counts


def test_blame_is_right_whenever_there_is_one(trial: Trial) -> None:
    blamed = []

    @EXAMPLES
    @given(transaction(trial.names(), trial.kinds, max_size=5))
    def judge(made: Transaction) -> None:
        arguments = made.document()
        assume(not kills(arguments))
        description = trial.ask(arguments)
        if description is not None:
            blamed.append(_assert_blame_is_right(trial, arguments, description) is not None)

    judge()
    assert sum(blamed) > len(blamed) / 2, f"{sum(blamed)} of {len(blamed)}"


def test_checker_and_qemu_agree_on_damaged_transactions(trial: Trial) -> None:
    """Something is missing, misspelt or of another type."""
    documents = transaction(trial.names(), trial.kinds, max_size=3).map(lambda made: made.document())

    @EXAMPLES
    @given(mutated(documents, JSON))
    def agree(arguments: Any) -> None:
        if not isinstance(arguments, dict):
            return
        refused = trial.check(arguments)
        if not is_json(arguments):
            assert refused is not None
            return
        assume(not kills(arguments))
        description = trial.ask(arguments)
        if refused is not None:
            assert description is not None, f"QEMU would have done it: {refused}"
        elif description is not None:
            assert not SCHEMA.search(description), description

    agree()


def is_json(value: Any) -> bool:
    """False for infinite numbers and what is no character, at which QEMU's parser, and then the client, gives up."""
    try:
        return wording.no_character(json.dumps(value, allow_nan=False, ensure_ascii=False)) is None
    except ValueError:
        return False


def kills(arguments: Any) -> bool:
    """True if it makes QEMU 7.2 crash: the undo of -enable does not check that there was a bitmap."""
    listed = arguments.get("actions") if isinstance(arguments, dict) else None
    properties = arguments.get("properties") if isinstance(arguments, dict) else None
    there = {(node, name) for node, names in EXISTING.items() for name in names}
    for action in listed if isinstance(listed, list) else ():
        data = action.get("data") if isinstance(action, dict) else None
        if isinstance(data, dict) and isinstance(action.get("type"), str):
            bitmap = (str(data.get("node")), str(data.get("name")))
            if action["type"] == "block-dirty-bitmap-add":
                there.add(bitmap)
            if action["type"] == "block-dirty-bitmap-enable" and (properties or bitmap not in there):
                return True
    return False


@pytest.mark.parametrize(
    ("action", "grouped"),
    [(bitmap("enable", "one", "nothing"), False), (bitmap("enable", "one", "old"), True)],
    ids=["no such bitmap", "grouped"],
)
def test_enable_that_can_end_qemu_is_refused(doomed: Machine, action: dict[str, Any], grouped: bool) -> None:
    """QEMU 7.2 crashes, so nothing but the checker stands between a typing error and the guest."""
    trial = Trial(Bench(doomed), FAKED)
    arguments: dict[str, Any] = {"actions": [action]}
    if grouped:
        arguments["properties"] = {"completion-mode": "grouped"}
    assert trial.check(arguments) is not None
    with pytest.raises((QmpError, ConnectionLostError, DomainGoneError)):
        doomed.monitor.execute("transaction", arguments)


def _assert_blame_is_right(trial: Trial, arguments: dict[str, Any], description: str) -> int | None:
    """Against the truth: the shortest beginning of the list that QEMU refuses with the same words."""
    given = arguments["actions"]
    blamed = blame.failing_index(given, description)
    if blamed is not None:
        for end in range(1, len(given) + 1):
            if trial.ask({**arguments, "actions": given[:end]}) == description:
                assert blamed == end - 1, description
                break
    return blamed


@pytest.mark.parametrize("odd", ["\ud800", "\ufdd0", "\ufdef", "\ufffe", "\U0001ffff", "\U0010fffe"], ids=ascii)
def test_what_is_no_character_is_refused_for_qemus_parser(odd: str) -> None:
    """Asked over a pipe, as a QMP client gives its connection up."""
    text = json.dumps({"execute": "query-version", "arguments": {"x": odd}})
    argv = ["qemu-storage-daemon", "--chardev", "stdio,id=qmp", "--monitor", "chardev=qmp"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()  # the greeting
        process.stdin.write(f'{{"execute": "qmp_capabilities"}}\n{text}\n')
        process.stdin.flush()
        process.stdout.readline()
        reply = json.loads(process.stdout.readline())
        process.kill()
    assert "JSON parse error" in reply["error"]["desc"]
    assert wording.no_character(f"a{odd}") is not None
