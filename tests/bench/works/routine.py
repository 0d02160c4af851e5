"""What an administrator has each day: the nightly run, beside its own steps, and the page of Cockpit."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests import browser as browser_
from tests import cockpit as cockpit_
from tests.bench.bench import Bench
from tests.bench.contenders import VBACKUP
from tests.bench.guests import MIB, Guest, scattered
from tests.bench.isolation import SHORT, URI
from tests.bench.measuring import Meter
from tests.browser import Browser, Driver
from vbackup.repository.repository import Repository

#: The series of the two, and what is in it beside the run.
RUN, BY_HAND = "run of a job", "its steps by hand"
COCKPIT = "Cockpit page with data, s"
_CONFIG = """\
[repository.main]
path = "{repository}"
[job.nightly]
connect = "{uri}"
domains = ["{domain}"]
at = "01:00"
[job.nightly.prune]
keep-last = 3
[job.nightly.verify]
sample = "50%"
"""
#: Notes when a row of the table has been painted: the frame after the one that shows it has begun.
_NOTE_ROWS = """
new MutationObserver((_changes, observer) => {
    if (!document.querySelector("tbody a.vb-name")) return;
    observer.disconnect();
    requestAnimationFrame(() => requestAnimationFrame(() => { window.benchSeen = performance.now(); }));
}).observe(document, { childList: true, subtree: true });
"""


def run_overhead(bench: Bench) -> None:
    """A job that backs up, prunes and verifies, and the same command lines one after the other."""
    with (
        bench.place("run") as place,
        bench.guest(place, "overhead", size_gib=1, data_mib=bench.size(64, 16)) as guest,
    ):
        repository, config = place / "repository", place / "vbackup.toml"
        Repository.create(repository)
        config.write_text(_CONFIG.format(repository=repository, uri=URI, domain=guest.name))
        config.chmod(0o600)
        environment = {"VBACKUP_STATE": os.fspath(place / "state")}
        argv = (*VBACKUP, "run", "nightly", "--config", config)

        def run(meter: Meter) -> None:
            meter.run(*argv, environment=environment)

        def by_hand(meter: Meter) -> None:
            for command, *words in steps:
                meter.run(*VBACKUP, command, "-q", *words, environment=environment)

        for number in range(bench.size(5, 1)):  # from then on each prune merges one
            _dirty(guest, number)
            run(Meter(bench.log))
        steps = _steps(argv, environment)
        ways: Sequence[tuple[str, Callable[[Meter], None]]] = ((RUN, run), (BY_HAND, by_hand))
        for number in range(bench.rounds):
            for seed, (name, way) in enumerate(ways, start=100 + 2 * number):
                _dirty(guest, seed)
                bench.run(way, bench.record.case(RUN, name), output=repository, of=[])


def _dirty(guest: Guest, seed: int) -> None:
    guest.dirty("vda", scattered(count=16, size_bytes=1024 * MIB, seed=seed), pattern=1 + seed % 250)


def _steps(argv: Sequence[str | Path], environment: dict[str, str]) -> list[list[str]]:
    """The command lines of the job, as it says itself."""
    words = [os.fspath(word) for word in (*argv, "--dry-run", "--json")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    [planned] = json.loads(done.stdout)["jobs"]
    return [command for step in planned["steps"] for command in step["commands"]]


def cockpit_page(bench: Bench, repository: Path) -> None:
    """The page of that repository, from the request for it until the browser has painted a row of its table."""
    if (reason := cockpit_.reason_not_to_start() or browser_.reason_not_to_start()) is not None:
        bench.record.skip(COCKPIT, reason)
        return
    with (
        tempfile.TemporaryDirectory(prefix="cockpit-", dir=SHORT) as place,
        cockpit_.installed(Path(place), {}) as cockpit,
        browser_.driver() as driver,
    ):
        cockpit.start()
        page = _page(driver, cockpit.page, repository, Path(place))
        try:
            took = [_seen_after_s(page) for _ in range(bench.rounds + 1)]
        finally:
            page.close()
    bench.record.figures[COCKPIT] = took[1:]  # the first one compiles
    print(f"    {COCKPIT}: {took}", flush=True)


def _page(driver: Driver, address: str, repository: Path, downloads: Path) -> Browser:
    page = Browser(driver, downloads=downloads)
    try:
        page.open(address)
        known = json.dumps([os.fspath(repository)])
        page.run("localStorage.setItem('vbackup:repositories', arguments[0])", known)
        page.devtools("Page.addScriptToEvaluateOnNewDocument", source=_NOTE_ROWS)
    except BaseException:
        page.close()
        raise
    return page


def _seen_after_s(page: Browser) -> float:
    start_s = time.monotonic()
    page.reload()
    seen_ms = page.wait("return window.benchSeen")
    assert seen_ms <= 1000 * (time.monotonic() - start_s)
    return round(seen_ms / 1000, 3)
