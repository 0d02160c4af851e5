"""``python -m tests.bench``: measure, and write the results. README.md beside this file tells what the figures mean."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tests import namespaces
from tests.bench import isolation, machine, report
from tests.bench.bench import Bench, Record
from tests.bench.works import WORKS, Work

TOP = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
#: What the works have on the disk at most at one time, and some.
NEEDED_GIB, NEEDED_GIB_SMOKE = 12, 1


def main(arguments: Sequence[str]) -> int:
    """Measure in namespaces of the bench's own; returns the exit status."""
    options = _parser().parse_args(arguments)
    # libvirt and QEMU have another working directory.
    options.directory = options.directory.resolve()
    if isolation.is_inside():
        namespaces.as_init()
        return _measure(options)
    if options.report_only:
        _report(options)
        return 0
    if reason := isolation.reason_not_to_run():
        print(f"bench: Nothing is measured: {reason}.", file=sys.stderr)
        return 1
    needed_gib = NEEDED_GIB_SMOKE if options.smoke else NEEDED_GIB
    options.directory.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(options.directory).free < needed_gib * 1024**3:
        print(f"bench: {options.directory} needs {needed_gib} GiB free; --directory names another.", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="run-", dir=options.directory) as place:
        status = isolation.run_inside([*arguments, "--place", place])
    if status == 0:
        _report(options)
    return status


def _parser() -> argparse.ArgumentParser:
    names = [work.name for work in WORKS]
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure vbackup and its peers.")
    parser.add_argument("--rounds", metavar="N", type=int, default=3, help="how often each contender runs (default: 3)")
    parser.add_argument("--only", metavar="WORK", nargs="+", choices=names, help=f"of {', '.join(names)}")
    parser.add_argument("--resume", action="store_true", help="leave out works that have results of this commit")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, one round, no peers: does it run at all?")
    parser.add_argument("--output", metavar="DIR", type=Path, default=RESULTS, help="of the results")
    parser.add_argument("--readme", metavar="FILE", type=Path, help="file to write the four figures of the README into")
    parser.add_argument("--report-only", action="store_true", help="measure nothing; write the pages and plots again")
    parser.add_argument(
        "--directory", metavar="DIR", type=Path, default=TOP / "build" / "bench", help="of all that is measured on"
    )
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    return parser


def _measure(options: argparse.Namespace) -> int:
    chosen = [work for work in WORKS if _is_wanted(work, options)]
    failed = []
    with isolation.libvirtd(options.place) as connection:
        machine_ = machine.machine(options.place)
        versions = machine.versions(connection)
        for work in chosen:
            bench = Bench(options.place, connection, 1 if options.smoke else options.rounds, options.smoke)
            print(f"{work.name}: {work.title}", flush=True)
            start_s = time.monotonic()
            try:
                work.run(bench)
            except Exception as err:  # noqa: BLE001 - the other works are worth having without this one
                print(f"bench: {work.name} failed: {type(err).__name__}: {err}", file=sys.stderr, flush=True)
                failed.append(work.name)
                continue
            document = _document(work, bench.record, options, time.monotonic() - start_s)
            report.save(options.output, work.name, {**document, "machine": machine_, "versions": versions})
    return 1 if failed else 0


def _is_wanted(work: Work, options: argparse.Namespace) -> bool:
    if options.only is not None and work.name not in options.only:
        return False
    if options.smoke and not work.in_smoke:
        return False
    done = report.load(options.output).get(work.name, {}) if options.resume else {}
    return not (done and done["commit"] == machine.commit() != "")


def _document(work: Work, record: Record, options: argparse.Namespace, duration_s: float) -> dict[str, Any]:
    return {
        "work": work.name,
        "title": work.title,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "commit": machine.commit(),
        "rounds": 1 if options.smoke else options.rounds,
        "smoke": options.smoke,
        "duration_s": round(duration_s, 1),
        "cases": record.cases,
        "figures": record.figures,
        "skipped": record.skipped,
    }


def _report(options: argparse.Namespace) -> None:
    results = report.load(options.output)
    report.write(options.output, results)
    if options.readme is not None:
        report.into_readme(options.readme, results)
    print(f"Results are in {options.output}.")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (KeyboardInterrupt, subprocess.CalledProcessError) as err:
        print(f"bench: {str(err) or 'Interrupted'}; nothing runs any more.", file=sys.stderr)
        sys.exit(130 if isinstance(err, KeyboardInterrupt) else 1)
