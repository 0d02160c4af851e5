"""The goals: each is looked up in the results and is met, missed with what was measured, or not measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.bench.measuring import median

Results = Mapping[str, Mapping[str, Any]]  #: by name of the work
MIB = 1024 * 1024


class MissingError(Exception):
    """A goal asks for something that was not measured."""


@dataclass(frozen=True)
class Verdict:
    """One goal, and what became of it."""

    work: str
    asked: str
    measured: str
    met: bool | None  #: None: not measured
    why: str = ""  #: of one that is missed: where the time went


@dataclass(frozen=True)
class Part:
    """One comparison of a goal."""

    measured: str
    met: bool


def verdicts(results: Results) -> list[Verdict]:
    """All goals, in their order."""
    return [_judge(work, asked, parts, results) for work, asked, parts in GOALS]


def _judge(work: str, asked: str, parts: Callable[[Results], list[Part]], results: Results) -> Verdict:
    try:
        found = parts(results)
    except MissingError as err:
        return Verdict(work, asked, f"not measured: {err}", None)
    met = all(part.met for part in found)
    why = "" if met else _phases(results.get(work, {}))
    return Verdict(work, asked, "; ".join(part.measured for part in found), met, why)


def _phases(result: Mapping[str, Any]) -> str:
    phases = result.get("figures", {}).get("phases", {})
    return ", ".join(f"{name} {value:.2f} s" for name, value in phases.items() if isinstance(value, float))


# looking up


def _samples(results: Results, work: str, contender: str, *, series: str = "", x: float | None = None) -> Any:
    cases = results.get(work, {}).get("cases", [])
    for case in cases:
        if case["contender"] == contender and series in ("", case["series"]) and x in (None, case["x"]):
            if case["samples"]:
                return case["samples"]
            break
    raise MissingError(f"{contender} in {work}" + ("" if x is None else f" at {x:g}"))


def _wall_s(results: Results, work: str, contender: str, **where: Any) -> float:
    return median(_samples(results, work, contender, **where), "wall_s")


def _figures(results: Results, work: str) -> Mapping[str, Any]:
    figures: Mapping[str, Any] = results.get(work, {}).get("figures", {})
    if not figures:
        raise MissingError(work)
    return figures


def _faster(results: Results, work: str, ours: str, other: str, factor: float, **where: Any) -> Part:
    ratio = _wall_s(results, work, other, **where) / _wall_s(results, work, ours, **where)
    return Part(f"{ratio:.1f} x as fast as {other}", ratio >= factor)


def _seconds(value: float, limit: float, what: str) -> Part:
    return Part(f"{what} {value:.2f} s", value < limit)


# the goals


def _full(results: Results) -> list[Part]:
    convert = "qemu-img convert -W -m 8"
    job_s = _figures(results, "full").get("phases", {}).get("QEMU copies")
    if job_s is None:
        raise MissingError("QEMU's part of a full")
    ratio = job_s / _wall_s(results, "full", convert, series="full")
    ours, theirs = (median(_samples(results, "full", one, series="full"), "stored_s") for one in ("vbackup", convert))
    return [
        Part(f"QEMU copies in {ratio:.2f} x {convert}", ratio <= 1.0),
        Part(f"committed after {ours / theirs:.2f} x {convert} and sync", ours <= 1.5 * theirs),
        _faster(results, "full", "vbackup", "virtnbdbackup", 2.5),
        _faster(results, "full", "vbackup", "virsh backup-begin (push)", 2),
    ]


def _compressed(results: Results) -> list[Part]:
    ours, theirs = "vbackup --compress zstd", "qmpbackup's transaction (zlib)"
    files, half_random = "full compressed", "full compressed, half of it random"
    size = median(_samples(results, "compressed", ours, series=files), "written_mib") / median(
        _samples(results, "compressed", theirs, series=files), "written_mib"
    )
    faster = _faster(results, "compressed", ours, theirs, 4, series=files)
    hard = _faster(results, "compressed", ours, theirs, 4, series=half_random)
    return [
        Part(f"{faster.measured} with files of /usr ({hard.measured} with data of which half is random)", faster.met),
        Part(f"{100 * size:.1f} % of its size", size <= 1.05),
    ]


def _incremental(results: Results) -> list[Part]:
    where = {"series": "incremental"}
    above = _wall_s(results, "incremental", "vbackup", **where) - _wall_s(
        results, "incremental", "QEMU's job alone", **where
    )
    return [
        _faster(results, "incremental", "vbackup", "virtnbdbackup", 4, **where),
        Part(f"{above:+.2f} s over QEMU's job alone", above <= 0.3),
    ]


def _nothing(results: Results) -> list[Part]:
    largest = [value for name, value in _figures(results, "nothing").items() if name.startswith("largest")]
    return [
        _seconds(_wall_s(results, "nothing", "vbackup", x=1), 0.4, "1 disk"),
        _seconds(_wall_s(results, "nothing", "vbackup", x=27), 1.2, "27 disks"),
        Part(f"largest image {max(largest) / 1024:.0f} KiB", max(largest) < MIB),
    ]


def _size(results: Results) -> list[Part]:
    parts = []
    for where in ("the first 8 GiB", "all of it"):
        small, large = (
            median(_samples(results, "size", "vbackup", series=f"64 MiB changed in {where}", x=x), "wall_s")
            for x in (8, 1024)
        )
        parts.append(Part(f"changes in {where}: {large - small:+.2f} s", large - small <= 0.5))
    return parts


def _domains(results: Results) -> list[Part]:
    theirs = _wall_s(results, "domains", "virtnbdbackup, one after the other", x=20)
    parts = []
    for name in ("vbackup, one command", "vbackup, one command, --parallel 4 and a host-wide rate"):
        ratio = _wall_s(results, "domains", name, x=20) / theirs
        parts.append(Part(f"{name}: 1/{1 / ratio:.1f} of virtnbdbackup's time", ratio <= 0.2))
    return parts


def _moment(results: Results) -> list[Part]:
    figures = _figures(results, "moment")
    parts = []
    for count in ("2", "8", "27"):
        if count not in figures:
            raise MissingError(f"{count} disks")
        # What the guest waits for. The answer comes later: QEMU reads the command meanwhile, and the guest runs.
        median_ms, worst_ms = (figures[count][f"longest_write_{which}_ms"] for which in ("median", "worst"))
        answer_ms = figures[count]["transaction_median_ms"]
        text = (
            f"{count} disks: median {median_ms:.0f}, worst {worst_ms:.0f} ms (QEMU's answer after {answer_ms:.0f} ms)"
        )
        parts.append(Part(text, worst_ms < 50))
    return parts


def _p99_ms(results: Results, work: str, name: str) -> float:
    figures = _figures(results, work)
    if name not in figures:
        raise MissingError(name)
    return median(figures[name], "p99_ms")


def _latency(results: Results) -> list[Part]:
    quiet, fleecing = (_p99_ms(results, "latency", name) for name in ("no backup", "vbackup --fleecing"))
    return [
        Part(f"p99 {fleecing:.1f} ms, without a backup {quiet:.1f} ms: {fleecing / quiet:.1f} x", fleecing <= 3 * quiet)
    ]


def _chain(results: Results) -> list[Part]:
    listing = _wall_s(results, "chain", "vbackup", series="list", x=200)
    newest = _wall_s(results, "chain", "vbackup", series="restore of the newest")
    full = _wall_s(results, "chain", "vbackup", series="restore of a full")
    plan = _wall_s(results, "chain", "vbackup", series="plan (backup --dry-run)", x=200)
    return [
        _seconds(listing, 0.5, "list"),
        Part(f"restore {newest / full:.2f} x that of a full", newest <= 1.5 * full),
        Part(f"plan {plan:.2f} s", met=True),
    ]


def _verify(results: Results) -> list[Part]:
    parts = [_faster(results, "verify", "vbackup", "sha256sum", 2, series="verify, full")]
    for series, limit in (("full", 1.2), ("chain of 200", 1.5)):
        samples = _samples(results, "verify", "qemu-img convert -W -m 8", series=f"restore, {series}")
        ours_s = _wall_s(results, "verify", "vbackup", series=f"restore, {series}")
        # A restore ends when all is on stable storage.
        ratio, without = (ours_s / median(samples, member) for member in ("stored_s", "wall_s"))
        text = f"restore of a {series} {ratio:.2f} x convert and sync ({without:.2f} x convert alone)"
        parts.append(Part(text, ratio <= limit))
    huge = _samples(results, "verify", "vbackup", series="verify, 64 MiB in 1 TiB")
    every = [one for case in results["verify"]["cases"] if case["contender"] == "vbackup" for one in case["samples"]]
    peak_mib = max(one["peak_mib"] for one in every)
    return [
        *parts,
        _seconds(median(huge, "wall_s"), 1.0, "1 TiB"),
        Part(f"peak memory {peak_mib:.0f} MiB", peak_mib < 150),
    ]


def _prune(results: Results) -> list[Part]:
    parts = []
    for series, limit in (("XFS, reflink", 0.1), ("in place", 0.15)):
        where = {"series": f"prune, {series}"}
        convert_s = _wall_s(results, "prune", "qemu-img convert -W -m 8", **where)
        ratio = _wall_s(results, "prune", "vbackup", **where) / convert_s
        parts.append(Part(f"{series} {ratio:.2f} x qemu-img convert of the full", ratio <= limit))
    return parts


def _rollback(results: Results) -> list[Part]:
    full_s = _wall_s(results, "rollback", "restore --output", x=8)
    parts = []
    for size_gib in (8, 1024):
        ours_s = _wall_s(results, "rollback", "restore --in-place", x=size_gib)
        ratio = ours_s / full_s
        parts.append(Part(f"{size_gib} GiB {ours_s:.2f} s, {ratio:.2f} x the full restore", ratio <= 0.1))
    return parts


def _live(results: Results) -> list[Part]:
    parts = []
    for size_gib in (8, 1024):
        ours_s = _wall_s(results, "live", "restore --live", x=size_gib)
        local_s = _wall_s(results, "live", "virsh start, of the image itself", x=size_gib)
        text = f"{size_gib} GiB {ours_s:.1f} s, {ours_s / local_s:.2f} x the local start of {local_s:.1f} s"
        parts.append(Part(text, ours_s <= 1.2 * local_s))
    return parts


def _mount(results: Results) -> list[Part]:
    def speed(length: int) -> float:
        where: dict[str, Any] = {"series": "read all", "x": length}
        return _wall_s(results, "mount", "qemu-img convert", **where) / _wall_s(results, "mount", "vbackup", **where)

    return [
        _seconds(_wall_s(results, "mount", "vbackup", series="first byte", x=200), 1.0, "first byte"),
        Part(
            f"reads at {speed(200):.2f} x the speed of qemu-img convert ({speed(1):.2f} x one image)", speed(200) >= 0.7
        ),
    ]


def _pull(results: Results) -> list[Part]:
    bare_s, ours_s = (_wall_s(results, "pull", name) for name in ("qemu-storage-daemon", "vbackup"))
    ratio = bare_s / ours_s
    return [Part(f"{ratio:.2f} x nbdcopy from a bare qemu-storage-daemon", ratio >= 0.8)]


def _stalled(results: Results) -> list[Part]:
    names = ("no session", "session without a client", "session, its client has stopped reading")
    none, idle, stalled = (_p99_ms(results, "stalled", name) for name in names)
    text = f"p99 {stalled:.1f} ms, without a client {idle:.1f} ms, without a session {none:.1f} ms"
    return [Part(f"{text}: {stalled / none:.1f} x", stalled <= 3 * none)]


def _file(results: Results) -> list[Part]:
    where = {"series": "ext4 on LVM, named"}
    ours_s, theirs_s = (_wall_s(results, "file", name, **where) for name in ("vbackup", "guestfish copy-out"))
    return [_seconds(ours_s, 20, "vbackup cp"), Part(f"{ours_s / theirs_s:.2f} x guestfish on a raw copy", True)]


def _start(results: Results) -> list[Part]:
    cases = ("vbackup --help", "vbackup list, 3 backups", "vbackup list, 200 backups")
    peak = max(sample["peak_mib"] for name in cases for sample in _samples(results, "start", name))
    limits = zip(cases, (0.15, 0.25, 0.5))
    return [
        *(_seconds(_wall_s(results, "start", name), limit, name) for name, limit in limits),
        Part(f"peak memory {peak:.0f} MiB", peak < 60),
    ]


def _list(results: Results) -> list[Part]:
    names = ("list", "list --all", "list --all --json")
    peak = max(sample["peak_mib"] for name in names for sample in _samples(results, "list", "vbackup", series=name))
    return [
        *(_seconds(_wall_s(results, "list", "vbackup", series=name), 1, name) for name in names),
        Part(f"peak memory {peak:.0f} MiB", peak <= 100),
    ]


def _daily(results: Results) -> list[Part]:
    limits_s = (("status", 1.0), ("report --html", 3.0), ("completion values domains", 0.1))
    page_mb = _figures(results, "daily")["page_bytes"] / 1e6
    parts = [_seconds(_wall_s(results, "daily", "vbackup", series=name), limit, name) for name, limit in limits_s]
    return [*parts, Part(f"page {page_mb:.1f} MB", page_mb <= 3)]


def _run(results: Results) -> list[Part]:
    run_s, by_hand_s = (
        _wall_s(results, "daily", name, series="run of a job") for name in ("run of a job", "its steps by hand")
    )
    return [Part(f"{run_s - by_hand_s:+.2f} s over {by_hand_s:.2f} s", run_s - by_hand_s < 0.3)]


def _cockpit(results: Results) -> list[Part]:
    took_s = _figures(results, "daily").get("Cockpit page with data, s")
    if not took_s:
        raise MissingError("the page of Cockpit")
    return [_seconds(statistics.median(took_s), 2, "first row painted after")]


def _diff(results: Results) -> list[Part]:
    names = ("diff", "diff --extents --json")
    peak = max(sample["peak_mib"] for name in names for sample in _samples(results, "diff", "vbackup", series=name))
    return [
        *(_seconds(_wall_s(results, "diff", "vbackup", series=name), 1, name) for name in names),
        Part(f"peak memory {peak:.0f} MiB", peak <= 150),
    ]


def _remote(results: Results) -> list[Part]:
    cat_s = _wall_s(results, "remote", "ssh cat", series="full through SSH")
    ratio = cat_s / _wall_s(results, "remote", "vbackup", series="full through SSH")
    changed = "incremental, 100 MiB in 1600 extents"
    names = ("vbackup", "vbackup of a domain on this host", "vbackup, 20 ms away")
    far_s, near_s, away_s = (_wall_s(results, "remote", name, series=changed) for name in names)
    trips = (away_s - far_s) / 0.02
    return [
        Part(f"full at {ratio:.2f} x the speed of ssh cat", ratio >= 0.8),
        Part(f"incremental {far_s:.2f} s, {far_s - near_s:+.2f} s over the local one", far_s - near_s <= 1),
        Part(f"20 ms away {away_s:.2f} s, as long as {trips:.0f} more round trips", met=True),
    ]


def _remote_latency(results: Results) -> list[Part]:
    work = "remote-latency"
    quiet_ms, near_ms = (_p99_ms(results, work, name) for name in ("no backup", "vbackup, no delay"))
    parts = [Part(f"p99 without a backup {quiet_ms:.1f} ms, without a delay {near_ms:.1f} ms", met=True)]
    for name in ("vbackup, 20 ms away", "vbackup, the link dies"):
        p99_ms = _p99_ms(results, work, name)
        worst_ms = max(one["worst_ms"] for one in _figures(results, work)[name])
        text = f"{name}: p99 {p99_ms:.1f} ms, {p99_ms / quiet_ms:.1f} x, worst {worst_ms:.0f} ms"
        parts.append(Part(text, p99_ms <= 3 * quiet_ms and worst_ms <= 100))
    return parts


def _copies(results: Results) -> list[Part]:
    where = {"series": "2 GiB"}
    ratio = _wall_s(results, "copies", "rclone copy", **where) / _wall_s(results, "copies", "vbackup", **where)
    plain_s, sealed_s = (
        median(_samples(results, "copies", name, **where), "program_cpu_s")
        for name in ("vbackup", "vbackup --recipient")
    )
    reads = _figures(results, "copies").get("old images", {}).get("reads")
    if reads is None:
        raise MissingError("reads of old images")
    return [
        Part(f"{ratio:.2f} x the speed of rclone", ratio >= 0.9),
        Part(f"with age {sealed_s / plain_s:.2f} x the processor time", sealed_s <= 1.3 * plain_s),
        _seconds(_wall_s(results, "copies", "vbackup", series="one new point"), 2, "one new of 30"),
        Part(f"{reads} reads of old images", reads == 0),
    ]


GOALS: tuple[tuple[str, str, Callable[[Results], list[Part]]], ...] = (
    (
        "full",
        (
            "Full of 2 GiB random data in 8 GiB: 1.0 x `qemu-img convert` until QEMU is done, 1.5 x convert and sync"
            " until the commit, 2.5 x as fast as virtnbdbackup, 2 x as virsh"
        ),
        _full,
    ),
    ("compressed", "Full with zstd: at least 4 x as fast as qmpbackup's zlib, size within 5 %", _compressed),
    (
        "incremental",
        "Incremental, 100 MiB in 1600 extents: 4 x as fast as virtnbdbackup, at most 0.3 s above QEMU's job alone",
        _incremental,
    ),
    ("nothing", "Nothing changed: under 0.4 s with 1 disk, 1.2 s with 27; under 1 MiB a disk", _nothing),
    ("size", "64 MiB changed in 1 TiB: at most 0.5 s slower than in 8 GiB", _size),
    ("domains", "20 domains, small changes, one command: at most 1/5 of 20 runs of virtnbdbackup", _domains),
    ("moment", "Guest blocked by the transaction (2, 8, 27 disks): under 50 ms without a freeze", _moment),
    (
        "latency",
        "Guest's writes while the repository takes 4 MB/s, with --fleecing: p99 within 3 x of no backup",
        _latency,
    ),
    ("chain", "Chain of 200: list under 0.5 s, restore of the newest at most 1.5 x that of a full", _chain),
    (
        "verify",
        (
            "Verify at least 2 x as fast as sha256sum; restore with its check at most 1.2 x `qemu-img convert` and sync"
            " of a full, 1.5 x of a chain of 200; verify of 1 TiB with 64 MiB of data under 1 s; under 150 MiB"
        ),
        _verify,
    ),
    (
        "rollback",
        "Rollback of 100 MiB in 8 GiB and in 1 TiB, 2 GiB of data: at most 0.1 x the full restore",
        _rollback,
    ),
    (
        "live",
        "Live restore, 2 GiB of data in 8 GiB and in 1 TiB: the agent answers within 1.2 x the time of a local start",
        _live,
    ),
    (
        "prune",
        (
            "Prune of 7 increments of 1 % into a full: XFS with reflink at most 0.1 x, ext4 in place at most 0.15 x"
            " `qemu-img convert` of the full"
        ),
        _prune,
    ),
    (
        "mount",
        "Mount of the newest of 200: first byte in under 1 s, read at 0.7 x the speed of `qemu-img convert` at least",
        _mount,
    ),
    ("pull", "Pull of 2 GiB out of a session: at least 0.8 x nbdcopy from a bare storage daemon", _pull),
    ("stalled", "Guest's writes while a session's client has stopped reading: p99 within 3 x of no session", _stalled),
    ("file", "A file of 1 MiB out of ext4 on LVM, with libguestfs under TCG: under 20 s", _file),
    ("start", "`vbackup --help` under 0.15 s, `vbackup list` under 0.25 s (0.5 s with 200), under 60 MiB", _start),
    ("list", "5,000 backups of 200 domains: lists under 1 s, 100 MiB", _list),
    (
        "daily",
        "200 domains with 60 backups each: status under 1 s, report under 3 s and 3 MB, completion under 0.1 s",
        _daily,
    ),
    ("daily", "`vbackup run` adds under 0.3 s to its steps (backup, prune, verify of a domain)", _run),
    ("daily", "Cockpit: page of 200 domains with 60 backups each with its data within 2 s", _cockpit),
    ("diff", "Difference of two points of 1 TiB with 64 MiB of data: under 1 s, 150 MiB", _diff),
    (
        "remote",
        "Full through SSH at 0.8 x the speed of `ssh HOST cat` at least; incremental at most 1 s over the local one",
        _remote,
    ),
    (
        "remote-latency",
        (
            "Guest's writes during a full through SSH, 20 ms away and with the link dead: p99 within 3 x of no backup;"
            " none longer than 100 ms"
        ),
        _remote_latency,
    ),
    (
        "copies",
        (
            "Copy to S3 at 0.9 x the speed of `rclone copy` at least; with age at most 30 % more processor time; one"
            " new point of 30 in under 2 s without a read of the others' images"
        ),
        _copies,
    ),
)
