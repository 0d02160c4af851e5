"""How time and memory grow: with disks, their size, what has changed, other bitmaps, domains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench import guests
from tests.bench.bench import Bench, vbackup, vbackup_knows
from tests.bench.contenders import OURS, VBACKUP, VIRTNBDBACKUP, Job, newest_backup
from tests.bench.guests import EXTENT_BYTES, MIB, Guest, scattered
from tests.bench.isolation import URI
from tests.bench.measuring import FailedError, Meter
from tests.bench.phases import phases

GIB = 1024**3
#: Seeds that no two sets of writes share.
_SEEDS = iter(range(1, 1_000_000))


@contextmanager
def _backed_up(bench: Bench, guest: Guest) -> Iterator[Job]:
    """The domain with a full in a separate repository, which later ones start from."""
    with bench.place(f"output-{guest.name}") as output, bench.place(f"scratch-{guest.name}") as scratch:
        job = Job(guest, output, scratch)
        OURS.ready(job)
        OURS.full(job, Meter(bench.log))
        yield job


def _change(guest: Guest, changed_mib: int, *, size_gib: int) -> None:
    seed = next(_SEEDS)
    extents = scattered(count=changed_mib * MIB // EXTENT_BYTES, size_bytes=size_gib * GIB, seed=seed)
    guest.dirty("vda", extents, pattern=seed % 255 + 1)


def nothing(bench: Bench) -> None:
    """Disks that nobody has written to."""
    for count in (1, 3, 9, 27):
        with bench.place("work") as place, ExitStack() as stack:
            disks = {dev: guests.create(place / f"{dev}.qcow2", "1G") for dev in guests.devs(count)}
            guest = stack.enter_context(guests.running(bench.connection, f"disks{count}", disks))
            ours = stack.enter_context(_backed_up(bench, guest))
            peers = []
            if count == 1 and VIRTNBDBACKUP in bench.able([VIRTNBDBACKUP]):
                output, scratch = (stack.enter_context(bench.place(f"peer-{kind}")) for kind in ("output", "scratch"))
                peers = [(VIRTNBDBACKUP, Job(guest, output, scratch))]
                VIRTNBDBACKUP.full(peers[0][1], Meter(bench.log))
            for _ in range(bench.rounds + 2):
                for one, job in [*peers, (OURS, ours)]:
                    assert one.incremental is not None
                    case = bench.record.case("nothing changed", one.name, x=count, unit="disks")
                    bench.attempt(one, one.incremental, job, case)
            newest = newest_backup(ours.output)
            largest = max(path.stat().st_blocks * 512 for path in newest.glob("*.qcow2"))
            bench.record.figures[f"largest image of {count}"] = largest
            # Of the most disks in the end.
            argv = (*VBACKUP, "backup", guest.name, "-c", URI, "-r", str(ours.output))
            bench.record.figures["phases"] = phases(argv)


def size(bench: Bench) -> None:
    """Virtual disks that hold nothing but the changes."""
    changed_mib = 64
    with ExitStack() as stack:
        jobs = {}
        for size_gib in (8, 64, 256, 1024):
            place = stack.enter_context(bench.place(f"work-{size_gib}"))
            guest = stack.enter_context(bench.guest(place, f"size{size_gib}", size_gib=size_gib))
            jobs[size_gib] = stack.enter_context(_backed_up(bench, guest))
        for _ in range(bench.rounds):
            for size_gib, job in jobs.items():
                # In the same places of all; and all over, where each extent has a separate table to be written too.
                for series, within_gib in (("the first 8 GiB", min(jobs)), ("all of it", size_gib)):
                    _change(job.guest, changed_mib, size_gib=within_gib)
                    assert OURS.incremental is not None
                    name = f"64 MiB changed in {series}"
                    case = bench.record.case(name, OURS.name, x=size_gib, unit="GiB virtual size")
                    bench.attempt(OURS, OURS.incremental, job, case)


def changed(bench: Bench) -> None:
    """The more has changed the longer it takes."""
    _series(
        bench,
        "changed data",
        "MiB changed",
        (0, 16, 64, 256),
        lambda guest, changed_mib: _change(guest, changed_mib, size_gib=8),
    )


def bitmaps(bench: Bench) -> None:
    """Bitmaps of others on the disk, which QEMU keeps account of and tells in every query."""

    def prepare(guest: Guest, count: int) -> None:
        node = guest.node_name("vda")
        for number in range(_others(guest, node), count):
            guest.qmp.execute("block-dirty-bitmap-add", node=node, name=f"other-{number}")
        _change(guest, 4, size_gib=8)

    _series(bench, "other bitmaps", "bitmaps", (0, 16, 64, 256), prepare)


def _others(guest: Guest, node_name: str) -> int:
    """How many bitmaps there are that ``bitmaps`` has made."""
    nodes = guest.qmp.execute("query-named-block-nodes", flat=True)
    found = next(one for one in nodes if one["node-name"] == node_name).get("dirty-bitmaps", [])
    return sum(bitmap.get("name", "").startswith("other-") for bitmap in found)


def _series(bench: Bench, series: str, unit: str, values: Sequence[int], prepare: Callable[[Guest, int], None]) -> None:
    """Incrementals of one domain of 8 GiB, prepared again for each value; the rounds within each."""
    with ExitStack() as stack:
        place = stack.enter_context(bench.place("work"))
        guest = stack.enter_context(bench.guest(place, "series", size_gib=8))
        job = stack.enter_context(_backed_up(bench, guest))
        for value in values:
            for _ in range(bench.rounds):
                prepare(guest, value)
                assert OURS.incremental is not None
                case = bench.record.case(series, OURS.name, x=value, unit=unit)
                bench.attempt(OURS, OURS.incremental, job, case)


def domains(bench: Bench) -> None:
    """One command for all, against a command for each."""
    count = 20
    with bench.place("work") as place, ExitStack() as stack:
        made = []
        for number in range(count):
            path = guests.create(place / f"d{number}.qcow2", "1G")
            made.append(stack.enter_context(guests.running(bench.connection, f"d{number:02}", {"vda": path})))
        ours, theirs = (stack.enter_context(bench.place(f"output-{who}")) for who in ("ours", "theirs"))
        OURS.ready(Job(made[0], ours, place))
        peers = bench.able([VIRTNBDBACKUP])
        for guest in made:
            vbackup(Meter(bench.log), "backup", guest.name, "-r", ours)
            for peer in peers:
                peer.full(Job(guest, theirs / guest.name, place), Meter(bench.log))
        for _ in range(min(bench.rounds, 2)):
            _one_round(bench, made, ours, theirs, has_peer=bool(peers))


def _one_round(bench: Bench, made: Sequence[Guest], ours: Path, theirs: Path, *, has_peer: bool) -> None:
    ways: list[tuple[str, Sequence[int], Path, Callable[[Sequence[Guest]], Callable[[Meter], None]]]] = []
    if has_peer:
        ways.append(("virtnbdbackup, one after the other", (len(made),), theirs, lambda some: _peer(some, theirs)))
    lengths = (1, 5, 10, len(made))
    ways.append(("vbackup, one after the other", lengths, ours, lambda some: _each(some, ours)))
    for name, more in _COMMANDS.items():
        missing = [
            word for word in ("--parallel", *more) if word.startswith("--") and not vbackup_knows("backup", word)
        ]
        if missing:
            bench.record.skip(name, f"this vbackup has no backup {missing[0]}")
            continue
        ways.append((name, lengths, ours, lambda some, more=more: _at_once(some, ours, more)))  # type: ignore[misc]
    for name, counts, output, backup in ways:
        for count in counts:
            some = made[:count]
            for guest in some:
                _change(guest, 1, size_gib=1)
            case = bench.record.case("domains", name, x=count, unit="domains")
            try:
                bench.run(backup(some), case, output=output, of=made)
            except FailedError as err:
                bench.record.skip(f"{name}, {count} domains", f"it failed: {err}")


def _peer(some: Sequence[Guest], output: Path) -> Callable[[Meter], None]:
    def run(meter: Meter) -> None:
        assert VIRTNBDBACKUP.incremental is not None
        for guest in some:
            VIRTNBDBACKUP.incremental(Job(guest, output / guest.name, output), meter)

    return run


def _each(some: Sequence[Guest], output: Path) -> Callable[[Meter], None]:
    def run(meter: Meter) -> None:
        for guest in some:
            vbackup(meter, "backup", guest.name, "-r", output)

    return run


def _at_once(some: Sequence[Guest], output: Path, more: Sequence[str]) -> Callable[[Meter], None]:
    return lambda meter: vbackup(meter, "backup", *(guest.name for guest in some), "-r", output, *more)


#: Ways to give one command many domains.
_COMMANDS: dict[str, tuple[str, ...]] = {
    "vbackup, one command": (),
    "vbackup, one command, --parallel 4": ("--parallel", "4"),
    "vbackup, one command, --parallel 4 and a host-wide rate": ("--total-speed", "200M", "--parallel", "4"),
}
