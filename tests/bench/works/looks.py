"""Looking into a repository: lists of many backups, and what differs between two of a huge disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from tests.bench.bench import Bench
from tests.bench.contenders import VBACKUP
from tests.bench.works import routine
from tests.unit.builders import backup, image, incremental
from vbackup.layers import ChainState, FileState, LayerState
from vbackup.model import Backup, BlocksRecord, HostIdentity
from vbackup.repository import block_list, manifest, verification
from vbackup.repository.block_list import SEGMENT_BLOCKS, SEGMENT_BYTES, Segment
from vbackup.repository.repository import Repository
from vbackup.repository.verification import Verdict, Verification

TIB = 1 << 40
#: 64 MiB of data.
DATA_BLOCKS = 1024


def listing(bench: Bench) -> None:
    """Many backups of many domains: a line for each domain, for each backup, and JSON."""
    domains, backups = bench.size(200, 2), 25
    # Nothing is written: what is looked at is not the output, and is not put on the disk after each run.
    with bench.place("work") as place, bench.place("output") as output:
        repository = Repository.create(place / "repository")
        for number in range(domains):
            _fill(repository, number, backups)
        for _ in range(bench.rounds):
            for words in (("list",), ("list", "--all"), ("list", "--all", "--json"), ("usage",)):
                case = bench.record.case(" ".join(words), "vbackup", x=domains * backups, unit="backups")
                argv = (*VBACKUP, *words, "-r", str(repository.path))
                bench.run(lambda meter, argv=argv: meter.run(*argv), case, output=output, of=[])


def daily(bench: Bench) -> None:
    """The same repository with more nights, as people and programs look at it each day: state, page, metrics, a TAB.

    Beside it, Cockpit's page of it, and a run of a job as each night has one.
    """
    domains, nights = bench.size(200, 2), bench.size(60, 3)
    with bench.place("work") as place, bench.place("output") as output:
        repository = Repository.create(place / "repository")
        for number in range(domains):
            _fill(repository, number, nights)
        page = place / "report.html"
        for _ in range(bench.rounds):
            for words in (
                ("status", "--offline"),
                ("status", "--offline", "--nagios"),
                ("report", "--offline", "--html", str(page)),
                ("metrics", "--offline"),
                ("completion", "values", "domains"),
            ):
                series = " ".join(word for word in words if word not in ("--offline", str(page)))
                case = bench.record.case(series, "vbackup", x=domains * nights, unit="backups")
                argv = (*VBACKUP, *words, "-r", str(repository.path))
                # 'status' says by its exit status that the backups are old.
                bench.run(lambda meter, argv=argv: meter.run(*argv, statuses=(0, 1, 2)), case, output=output, of=[])
        bench.record.figures["page_bytes"] = page.stat().st_size
        if not bench.is_smoke:
            routine.cockpit_page(bench, repository.path)
    routine.run_overhead(bench)


def difference(bench: Bench) -> None:
    """A disk of 1 TiB with 64 MiB of data, of which half is other data in the next backup, in places all over."""
    # Nothing is written: what is looked at is not the output, and is not put on the disk after each run.
    with bench.place("work") as place, bench.place("output") as output:
        repository = Repository.create(place / "repository")
        one = backup(1, image(virtual_size_bytes=TIB))
        two = incremental(2, one)
        two = replace(two, disks=(replace(two.disks[0], virtual_size_bytes=TIB),))
        for each, step in ((one, 1), (two, 2)):
            _put(repository, each, list(_segments(each.sequence, step)))
        for _ in range(bench.rounds):
            for words in (("diff", one.id), ("diff", one.id, "--extents", "--json")):
                case = bench.record.case(" ".join((words[0], *words[2:])), "vbackup", x=1024, unit="GiB virtual size")
                argv = (*VBACKUP, *words, "-r", str(repository.path))
                bench.run(lambda meter, argv=argv: meter.run(*argv), case, output=output, of=[])


def _fill(repository: Repository, number: int, backups: int) -> None:
    """A domain with a chain of that length: two disks, with all that a real manifest has."""
    uuid, name = f"f0000000-0000-4000-8000-{number:012d}", f"vm{number:03}"
    newest: Backup | None = None
    for sequence in range(1, backups + 1):
        made = backup(sequence) if newest is None else incremental(sequence, newest)
        disks = tuple(
            replace(made.disks[0], dev=dev, file=f"{dev}.qcow2", chain=_chain(name, dev), digest=None, blocks=_BLOCKS)
            for dev in ("vda", "vdb")
        )
        newest = replace(
            made, disks=disks, domain_uuid=uuid, domain_name=name, host=HostIdentity("hypervisor", "1" * 32)
        )
        directory = repository.directory(uuid, newest.id)
        directory.mkdir(parents=True)
        (directory / "manifest.json").write_text(manifest.dump(newest))
        for disk in disks:
            with (directory / disk.file).open("wb") as file:
                file.truncate(disk.file_size_bytes)
        if sequence % 2:
            found = verification.document(Verification(newest.time, Verdict.GOOD, 100.0, 1))
            (directory / verification.NAME).write_text(json.dumps({"schema": verification.SCHEMA, **found}))
    (repository.path / uuid / "domain.json").write_text(json.dumps({"names": [name]}))


_BLOCKS = BlocksRecord("blake3:" + "0" * 64, "blake3:" + "1" * 64, data_blocks=100, zero_blocks=3)


def _chain(name: str, dev: str) -> ChainState:
    paths = (f"/var/lib/libvirt/images/{name}-{dev}.qcow2", "/var/lib/libvirt/images/template.qcow2")
    layers = (LayerState(f"libvirt-{number}-format", FileState(path, 1, 2, 3, 4)) for number, path in enumerate(paths))
    return ChainState(tuple(layers), "1" * 20, "2" * 36)


def _segments(salt: int, step: int) -> Iterator[Segment]:
    """One block of data in each segment that is ``step`` times two from the next, up to DATA_BLOCKS in all."""
    segments = TIB // SEGMENT_BYTES
    for number in range(0, segments, step * segments // DATA_BLOCKS):
        mask = 1 << number % SEGMENT_BLOCKS
        yield Segment(number, mask, mask, sha256(b"%d %d" % (salt, number)).digest())


def _put(repository: Repository, one: Backup, segments: Sequence[Segment]) -> None:
    [disk] = one.disks
    directory: Path = repository.directory(one.domain_uuid, one.id)
    directory.mkdir(parents=True)
    written = block_list.write(
        (directory / disk.file).with_suffix(block_list.SUFFIX),
        segments,
        virtual_size_bytes=disk.virtual_size_bytes,
        algorithm=block_list.best_algorithm(),
    )
    blocks = BlocksRecord(written.digest, written.digest, written.data_blocks, written.zero_blocks)
    (directory / "manifest.json").write_text(
        manifest.dump(replace(one, disks=(replace(disk, digest=None, blocks=blocks),)))
    )
    with (directory / disk.file).open("wb") as file:
        file.truncate(disk.file_size_bytes)
