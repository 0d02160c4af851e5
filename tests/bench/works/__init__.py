"""The works: what is measured. Each is a function that fills the record of a run; they need nothing of each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.bench import Bench
from tests.bench.works import (
    chains,
    copies,
    guest_files,
    living,
    looks,
    moments,
    mounting,
    pruning,
    pulling,
    remoting,
    rolling,
    scale,
    targets,
    verifying,
)


@dataclass(frozen=True)
class Work:
    """One work; its results are in a file of its name."""

    name: str
    title: str
    run: Callable[[Bench], None]
    in_smoke: bool = False


WORKS = (
    Work("start", "Start of the command", chains.start, in_smoke=True),
    Work("list", "Lists of 5,000 backups of 200 domains", looks.listing),
    Work("daily", "State, report and completion of 12,000 backups of 200 domains", looks.daily, in_smoke=True),
    Work("diff", "Difference of two points of 1 TiB with 64 MiB of data", looks.difference),
    Work("full", "Full, 2 GiB of random data in 8 GiB", copies.full, in_smoke=True),
    Work(
        "compressed",
        "Full compressed, 512 MiB of data in 2 GiB: files of /usr; and half random, half text",
        copies.compressed,
    ),
    Work("incremental", "Incremental, 100 MiB in 1600 scattered extents", copies.incremental, in_smoke=True),
    Work("nothing", "Incremental with nothing changed, by number of disks", scale.nothing),
    Work("size", "Incremental of 64 MiB changed, by virtual size", scale.size),
    Work("changed", "Incremental, by what has changed", scale.changed),
    Work("bitmaps", "Incremental of 4 MiB changed, by number of other bitmaps on the disk", scale.bitmaps),
    Work("domains", "Incrementals of many domains on one host, 1 MiB changed in each", scale.domains),
    Work("moment", "How long the transaction stops the guest, by number of disks", moments.moment),
    Work("latency", "Latency of the guest's writes while the repository takes 4 MB/s", moments.latency),
    Work("chain", "A chain of incrementals, by length", chains.chain),
    Work("verify", "Verify and restore, in the page cache", verifying.verify, in_smoke=True),
    Work("rollback", "Rollback of 100 MiB in 1600 extents, by virtual size, beside a full restore", rolling.rollback),
    Work("live", "Live restore until the guest's agent answers, beside a local start", living.live),
    Work("mount", "Mount of the newest of a chain, 1 GiB of data", mounting.mount),
    Work("pull", "Pull of 2 GiB of data out of a session, beside a storage daemon", pulling.pull),
    Work("stalled", "Latency of the guest's writes while the client of a session has stopped reading", pulling.stalled),
    Work("file", "A file of 1 MiB out of a guest, with libguestfs under TCG", guest_files.one_file),
    Work("remote", "Backups through SSH, 3 GiB of data in 8 GiB", remoting.remote, in_smoke=True),
    Work(
        "remote-latency",
        "Latency of the guest's writes during a backup through SSH, 20 ms away and with the link dead",
        remoting.remote_latency,
    ),
    Work("copies", "Copies to an S3 server (SeaweedFS) on this machine", targets.copies, in_smoke=True),
    Work("prune", "Prune of seven increments of 1 % into a full of 1 GiB", pruning.prune),
)
