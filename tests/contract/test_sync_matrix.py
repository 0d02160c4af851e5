"""What becomes of a bitmap: sync mode x bitmap mode x how the job ends, against an emulation of the bits.

After QEMU's own iotest 257. The emulation knows nothing of QEMU's code, only what the documentation of
BitmapSyncMode promises: https://qemu.readthedocs.io/en/latest/interop/bitmaps.html
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from tests.contract.conftest import (
    DISK,
    SIZE_BYTES,
    Action,
    Bench,
    Machine,
    add_bitmap,
    backup,
    make_machine,
    plain_file,
)
from tests.contract.test_actions import no_disks
from tests.crossed import crossed
from vbackup.domain.attached import AttachedQemu
from vbackup.operations import transaction
from vbackup.operations.transaction import Done, TransactionRequest
from vbackup.qapi.actions import CompletionMode
from vbackup.qemu import jobs
from vbackup.qemu.jobs import JobStatus
from vbackup.report import Phase, Silent
from vbackup.stop import Stop

GRANULE = 65536
GRANULES = SIZE_BYTES // GRANULE
#: Allocated in the active layer, but not written while the bitmap records.
EARLIER = frozenset((40, 41, 64))
#: Written while the bitmap records: what an incremental copies.
CHANGED = frozenset(range(8))
#: Written while the job runs: what it has copied already, has yet to copy, and copies or not as the sync mode says.
DURING = (0, 7, 64)
#: Where a target fails: behind what is copied when the test strikes.
BAD = 6
#: One granule in 200 ms, so that the job can be met midway.
SLOW_BYTES_S = 5 * GRANULE
#: The job is met when it has copied at least so much, and nothing is expected of it if it has come further.
STRIKE_BYTES, TOO_LATE_BYTES = 2 * GRANULE, 5 * GRANULE

SYNC_AND_BITMAP_MODES = (
    ("incremental", "on-success"),
    ("bitmap", "on-success"),
    ("bitmap", "never"),
    ("bitmap", "always"),
    ("full", "on-success"),
    ("full", "always"),
    ("top", "on-success"),
    ("top", "always"),
)
ENDS = ("success", "failed at the end", "cancelled midway", "I/O error midway")
COMPLETIONS = ("individual", "grouped", "together")


@dataclass
class EmulatedBitmap:
    """What a bitmap should hold, as a set of granules."""

    bits: set[int] = field(default_factory=set)
    _during: set[int] | None = None
    to_copy: set[int] = field(default_factory=set)

    def write(self, granule: int) -> None:
        (self.bits if self._during is None else self._during).add(granule)

    def start(self, sync: str) -> None:
        """A job starts: what is written from now on is kept apart."""
        self._during = set()
        self.to_copy = {
            "full": set(range(GRANULES)),
            "top": set(EARLIER | CHANGED),
        }.get(sync, set(self.bits))

    def end(self, bitmap_mode: str, *, succeeded: bool, copied: set[int]) -> None:
        assert self._during is not None
        if bitmap_mode == "never" or (bitmap_mode == "on-success" and not succeeded):
            self.bits |= self._during
        elif succeeded:
            self.bits = self._during
        else:  # always: what was not copied stays dirty
            self.bits = self._during | (self.to_copy - copied)

    def copied(self, done_bytes: int, guest: set[int]) -> set[int]:
        """The granules a job has copied: in ascending order, after those that the guest was about to overwrite."""
        first = self.to_copy & guest
        rest = sorted(self.to_copy - first)
        return first | set(rest[: done_bytes // GRANULE - len(first)])


class _TooLateError(Exception):
    """The machine was so slow that the job had gone on too far."""


class Director(Silent):
    """Looks at the progress of jobs and does what a test wants at its time."""

    def __init__(self) -> None:
        self.cues: dict[str, tuple[int, Callable[[int], None]]] = {}  #: by job: at how many bytes, and what to do

    def progress(self, dev: str, phase: Phase, done_bytes: int, total_bytes: int) -> None:
        when_bytes, act = self.cues.get(dev, (total_bytes + 1, None))
        if act is not None and done_bytes >= when_bytes:
            del self.cues[dev]
            act(done_bytes)


@pytest.fixture(scope="module")
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with make_machine("socket", request) as made:
        yield made


def target(bench: Bench, name: str, *, bad_granule: int | None = None) -> str:
    """A new target, which may be one that cannot be written at one place."""
    options = {"driver": "raw", "file": plain_file(str(bench.image("raw")))}
    if bad_granule is None:
        bench.execute("blockdev-add", node_name=name, **options)
        return name
    error = {"event": "none", "sector": bad_granule * GRANULE // 512, "errno": 5, "once": False, "immediately": True}
    errors = [{**error, "iotype": kind} for kind in ("write", "write-zeroes")]
    bench.execute("blockdev-add", driver="blkdebug", node_name=name, image=options, inject_error=errors)
    return name


def run(bench: Bench, actions: Sequence[Action], completion: str, director: Director) -> Done:
    """Send the transaction with two jobs of different disks, and follow them."""
    mode = CompletionMode.INDIVIDUAL if completion == "individual" else CompletionMode.GROUPED
    done = transaction.run(
        TransactionRequest(list(actions), completion_mode=mode, wait=True),
        attached=AttachedQemu("test", bench.monitor, no_disks),
        reporter=director,
        stop=Stop(),
    )
    assert done.completion.value == completion
    return done


def digest(bits: set[int]) -> str:
    """As QEMU's hbitmap_sha256 has it: over the words of the lowest level."""
    number = sum(1 << bit for bit in bits)
    return hashlib.sha256(number.to_bytes(GRANULES // 8, "little")).hexdigest()


@pytest.mark.parametrize(
    ("sync", "bitmap_mode", "end", "completion"),
    crossed([(*modes, end) for modes in SYNC_AND_BITMAP_MODES for end in ENDS], COMPLETIONS),
)
def test_bits_are_as_promised(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, sync: str, bitmap_mode: str, end: str, completion: str
) -> None:
    monkeypatch.setattr(jobs, "TICK_S", 0.01)
    for _attempt in range(5):
        bench = Bench(machine)
        try:
            act_out(bench, sync, bitmap_mode, end, completion)
            return
        except _TooLateError:
            continue
        finally:
            bench.clear()
    pytest.fail("the job could never be met midway")


def act_out(bench: Bench, sync: str, bitmap_mode: str, end: str, completion: str) -> None:
    disk = bench.disk_node()
    emulated = EmulatedBitmap()
    for granule in sorted(EARLIER):
        bench.write(DISK, granule * GRANULE, 512)
    bench.transaction(add_bitmap(disk, "b"))
    for granule in sorted(CHANGED):
        bench.write(DISK, granule * GRANULE, 512)
        emulated.write(granule)
    assert bits_of(bench, disk) == digest(emulated.bits)

    director = Director()

    def strike(done_bytes: int) -> None:
        if done_bytes > TOO_LATE_BYTES:
            raise _TooLateError
        for granule in DURING:
            bench.write(DISK, granule * GRANULE, 512)
            emulated.write(granule)
        if end == "cancelled midway":
            bench.execute("job-cancel", id="a")
        else:
            bench.execute("block-job-set-speed", device="a", speed=0)

    director.cues["a"] = (STRIKE_BYTES, strike)
    at_the_end = end == "failed at the end"
    alone = completion == "individual"
    a = backup(
        "a", disk, target(bench, "target-a", bad_granule=BAD if end == "I/O error midway" else None),
        sync=sync, bitmap="b", bitmap_mode=bitmap_mode, speed=SLOW_BYTES_S,
        x_perf={"max-workers": 1, "max-chunk": GRANULE}, auto_finalize=not (alone and at_the_end), auto_dismiss=True,
    )  # fmt: skip
    bench.node("source-b", "raw")
    # The other one outlasts the first where it is to fail: one granule in ten seconds, until it is let go.
    b = backup(
        "b", "source-b", target(bench, "target-b", bad_granule=1 if at_the_end and not alone else None),
        speed=GRANULE // 10 if at_the_end and not alone else 0, x_perf={"max-workers": 1, "max-chunk": GRANULE},
        auto_finalize=True, auto_dismiss=True,
    )  # fmt: skip
    if at_the_end and not alone:
        let_go_when_copied(bench, director, emulated)
    beside = [add_bitmap(disk, "beside")] if completion == "together" else []
    emulated.start(sync)
    done = run(bench, [*beside, a, b], completion, director)
    jobs = {one.id: one for one in done.jobs}
    if at_the_end and alone:
        assert jobs["a"].status is JobStatus.PENDING
        bench.execute("job-cancel", id="a")
        bench.wait("a", "concluded")
    succeeded = end == "success"
    assert (jobs["a"].error is None) is (succeeded or (at_the_end and alone))
    # Together they fail, or not at all.
    assert (jobs["b"].error is None) is (succeeded or alone)
    emulated.end(bitmap_mode, succeeded=succeeded, copied=emulated.copied(jobs["a"].done_bytes, set(DURING)))
    assert bits_of(bench, disk) == digest(emulated.bits)
    bitmap = bench.bitmap(disk, "b")
    assert bitmap is not None
    assert bitmap["recording"]
    assert bitmap["count"] == len(emulated.bits) * GRANULE


def let_go_when_copied(bench: Bench, director: Director, emulated: EmulatedBitmap) -> None:
    """Let job b run into its error once job a has copied everything."""
    strike_bytes, strike = director.cues["a"]

    def then(done_bytes: int) -> None:
        strike(done_bytes)
        director.cues["a"] = (len(emulated.to_copy) * GRANULE, release)

    def release(_done_bytes: int) -> None:
        bench.execute("block-job-set-speed", device="b", speed=0)

    director.cues["a"] = (strike_bytes, then)


def bits_of(bench: Bench, node: str) -> str:
    answer = bench.execute("x-debug-block-dirty-bitmap-sha256", node=node, name="b")
    sha256: str = answer["sha256"]
    return sha256
