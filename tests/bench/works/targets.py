"""Copies to an S3 server on this machine: beside rclone with the same files, with age, and of one point of many."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests import age, weed
from tests.bench import guests
from tests.bench.bench import Bench
from tests.bench.contenders import OURS, VBACKUP
from tests.bench.guests import MIB, scattered
from tests.bench.isolation import SHORT
from tests.bench.measuring import FailedError, Meter
from tests.recorded import BLOCK, Ready, Recorded, Write
from tests.weed import KEY, SECRET, Weed
from vbackup.model import Level

FULL, ONE_NEW = "2 GiB", "one new point"
AGE, RCLONE = "vbackup --recipient", "rclone copy"
#: Of inotify(7).
_IN_ACCESS, _IN_OPEN = 0x1, 0x20
_EVENT = struct.Struct("iIII")


def copies(bench: Bench) -> None:
    """A full of 2 GiB of random data; and the newest of 30 points, when the target has the others."""
    if (reason := weed.reason_not_to_start()) is not None:
        bench.record.skip("copies", reason)
        return
    with bench.place("work") as place:
        size_gib = bench.size(8, 1)
        disk = guests.make_disk(place / "disk.qcow2", size_gib=size_gib, data_mib=bench.size(2048, 16))
        made = Recorded(place / "repository")
        made.add({"vda": Ready(disk, size_gib * 1024 * MIB)}, level=Level.FULL)
        disk.unlink()
        key = age.key_pair(place)
        for _ in range(bench.rounds):
            with weed.server(SHORT) as server:
                _full(bench, server, made, key)
        for _ in range(bench.rounds):
            with weed.server(SHORT) as server:
                _one_new(bench, server, place / "points")


def _full(bench: Bench, server: Weed, made: Recorded, key: age.KeyPair) -> None:
    rclone = bench.record.case(FULL, RCLONE)
    if bench.is_smoke or shutil.which("rclone") is None:
        if not bench.is_smoke:
            bench.record.skip(RCLONE, "rclone is not installed")
    else:
        to = f"weed:{server.shared}/rclone"
        words = ("rclone", "copy", made.path(made.backups[0]).parent, to)
        bench.run(lambda meter: meter.run(*words, environment=_rclone(server)), rclone, output=server.directory, of=[])
        if rclone["verified"] is None:
            check = ("rclone", "check", "--download", *words[2:])
            rclone["verified"] = _verdict(bench, check, _rclone(server))
    for name, seal, opens in ((OURS.name, (), ()), (AGE, ("--recipient", key.recipient), ("--identity", key.path))):
        case = bench.record.case(FULL, name)
        target = f"s3://{server.shared}/{'age' if seal else 'plain'}"
        _copy(bench, server, made.repository.path, target, case, seal)
        if case["verified"] is None:
            verify = (*VBACKUP, "-q", "verify", "--all", "--from", target, "--cache", key.path.parent / "cache", *opens)
            case["verified"] = _verdict(bench, verify, server.settings())


def _copy(
    bench: Bench,
    server: Weed,
    repository: Path,
    target: str,
    case: dict[str, object],
    options: Sequence[str] = (),
) -> None:
    argv = (*VBACKUP, "-q", "copy", "--all", "-r", repository, "--to", target, *options)
    bench.run(lambda meter: meter.run(*argv, environment=server.settings()), case, output=server.directory, of=[])


def _rclone(server: Weed) -> Mapping[str, str]:
    settings = {
        "TYPE": "s3",
        "PROVIDER": "Other",
        "ENDPOINT": server.endpoint,
        "ACCESS_KEY_ID": KEY,
        "SECRET_ACCESS_KEY": SECRET,
        "REGION": "us-east-1",
    }
    # rclone refuses authorities of the environment, and would not need them here.
    own = {"RCLONE_CONFIG": "/dev/null", "AWS_CA_BUNDLE": ""}
    return {**own, **{f"RCLONE_CONFIG_WEED_{name}": value for name, value in settings.items()}}


def _verdict(bench: Bench, argv: Sequence[str | Path], environment: Mapping[str, str]) -> str:
    try:
        Meter(bench.log).run(*argv, environment=environment)
    except FailedError as err:
        return f"differs: {err}"
    return "identical"


# one new point


def _one_new(bench: Bench, server: Weed, path: Path) -> None:
    count, size_bytes = bench.size(30, 3), bench.size(4096, 64) * MIB
    made = Recorded(path)
    try:
        whole = [Write(0, size_bytes // 8, 1)]
        made.add({"vda": whole}, level=Level.FULL, size_bytes=size_bytes, is_huge=True)
        for number in range(1, count):
            if number == count - 1:
                target = f"s3://{server.shared}/points"
                argv = (*VBACKUP, "-q", "copy", "--all", "-r", path, "--to", target)
                Meter(bench.log).run(*argv, environment=server.settings())
            extents = scattered(count=bench.size(128, 4), size_bytes=size_bytes, seed=number)
            writes = [Write(at, BLOCK, number % 255 + 1) for at in extents]
            made.add({"vda": writes}, size_bytes=size_bytes, is_huge=True)
        old = [made.path(one) for one in made.backups[:-1]]
        case = bench.record.case(ONE_NEW, OURS.name, x=count, unit="points in the repository")
        with _watched(old) as seen:
            _copy(bench, server, path, target, case)
            opened, read = seen()
        figures = bench.record.figures.setdefault("old images", {"opened": 0, "reads": 0})
        figures["opened"] += opened
        figures["reads"] += read
    finally:
        shutil.rmtree(path)


@contextmanager
def _watched(paths: Sequence[Path]) -> Iterator[Callable[[], tuple[int, int]]]:
    """What returns how often one of the files was opened, and read, since the block began (inotify)."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    try:
        for path in paths:
            watch = libc.inotify_add_watch(fd, os.fsencode(path), _IN_ACCESS | _IN_OPEN)
            assert watch >= 0, os.strerror(ctypes.get_errno())
        yield lambda: _counted(fd)
    finally:
        os.close(fd)


def _counted(fd: int) -> tuple[int, int]:
    masks: list[int] = []
    while True:
        try:
            data = os.read(fd, 1 << 20)
        except BlockingIOError:
            return sum(bool(mask & _IN_OPEN) for mask in masks), sum(bool(mask & _IN_ACCESS) for mask in masks)
        while data:
            _, mask, _, name_bytes = _EVENT.unpack_from(data)
            masks.append(mask)
            data = data[_EVENT.size + name_bytes :]
