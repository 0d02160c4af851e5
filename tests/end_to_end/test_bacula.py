"""Bacula's three daemons run the jobs of a domain, as ``vbackup engine config`` has printed them.

A full, incrementals of which one fails and one is cancelled, a differential, an incremental on that, and a restore: the
jobs that the director calls good are the chain, and each of its points is what the disk held.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import bacula
from tests.bacula import Bacula, Job
from tests.conftest import Command
from tests.daemon import Daemon, wait_for
from tests.end_to_end.test_engine_recipes import examples
from tests.lab import DiskSpec, Machine, compare, domain_xml
from vbackup.model import Level
from vbackup.repository.repository import Repository

pytestmark = pytest.mark.skipif(bacula.reason_not_to_start() is not None, reason=str(bacula.reason_not_to_start()))

#: What stands between the director and vbackup: it lets a stream end early, or lets QEMU copy slowly.
WRAPPER = """\
#!/bin/sh
case "$2 $(cat {mode})" in
    "read cut") {program} "$@" | head -c 200000; exit 7 ;;
    "read slow") exec {slow} "$@" ;;
    *) exec {program} "$@" ;;
esac
"""

#: vbackup whose streams are copied at 64 KiB/s.
SLOW = """\
#!{python}
import sys
from dataclasses import replace
sys.path.insert(0, "{top}")
from vbackup.cli import command
from vbackup.operations import stream_backup
run = stream_backup.run
stream_backup.run = lambda request, *arguments, **more: run(
    replace(request, backup=replace(request.backup, speed_bytes_s=65536)), *arguments, **more
)
command()
"""


class Site:
    """A domain, the director that backs it up, and what its disk held at each job."""

    def __init__(self, machine: Machine, image: Path, director: Bacula, images: Path) -> None:
        self.machine, self.image, self.director, self.images = machine, image, director, images
        self.expected: dict[int, Path] = {}

    def back_up(self, level: str, write: str, *, mode: str = "") -> Job:
        """The guest writes, the job runs; what the disk holds is kept."""
        self.machine.write("vda", write, "flush")
        (self.images / "mode").write_text(mode)
        job = self.director.run("vbackup-web", level)
        self.keep(job.id)
        return job

    def keep(self, job_id: int) -> None:
        self.expected[job_id] = self.images / f"expected-{job_id}.raw"
        argv = ["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", self.image, self.expected[job_id]]
        subprocess.run(argv, check=True)

    def cancel(self, level: str, write: str) -> float:
        """Cancel a job while QEMU copies, before anything is in the stream; returns how many seconds that took."""
        self.machine.write("vda", write, "flush")
        (self.images / "mode").write_text("slow")
        self.director.console(f"run job=vbackup-web level={level} yes")
        wait_for(lambda: bool(self.machine.execute("query-jobs")), "the copy")
        started = time.monotonic()
        self.director.console("cancel job=vbackup-web yes", "wait")
        return time.monotonic() - started


@pytest.fixture
def site(daemon: Daemon, command: Command, images: Path) -> Iterator[Site]:
    spec = DiskSpec(images / "vda.qcow2", size="32M")
    spec.create()
    machine = daemon.start(domain_xml("web", [spec.xml()]))
    program, wrapper = bacula.program(images / "vbackup"), images / "wrapper"
    slow = images / "slow"
    slow.write_text(SLOW.format(python=sys.executable, top=Path(bacula.__file__).parents[1]))
    wrapper.write_text(WRAPPER.format(program=program, slow=slow, mode=images / "mode"))
    for path in (slow, wrapper):
        path.chmod(0o755)
    (images / "mode").touch()
    config = command(
        *("engine", "config", "--for", "bacula", "--domain", "web", "--client", "host-fd", "--address", "127.0.0.1"),
        *("--program", wrapper, "--stage", images / "stage", "--where", images / "restored"),
    ).stdout
    environment = {"LIBVIRT_DEFAULT_URI": daemon.uri}
    with Bacula(images / "bacula", config=config, environment=environment) as director:
        yield Site(machine, spec.path, director, images)
        print(director.log)  # pytest shows it with a failure


@pytest.mark.long
def test_jobs_that_the_director_calls_good_are_the_chain(site: Site, command: Command, daemon: Daemon) -> None:
    director = site.director
    assert site.back_up("Incremental", "write -P 1 0 8M") == Job(1, "F", "T")  # the director makes it a full
    assert site.back_up("Incremental", "write -P 2 1M 1M") == Job(2, "I", "T")
    assert site.back_up("Incremental", "write -P 3 2M 1M", mode="cut") == Job(3, "I", "E")
    assert site.back_up("Incremental", "write -P 4 3M 1M") == Job(4, "I", "T")
    assert site.cancel("Incremental", "write -P 5 4M 1M") < 20
    assert director.jobs()[-1] == Job(5, "I", "A")
    assert site.back_up("Incremental", "write -P 6 5M 1M") == Job(6, "I", "T")
    assert site.back_up("Differential", "write -P 7 6M 1M") == Job(7, "D", "T")
    assert site.back_up("Incremental", "write -P 8 7M 64k") == Job(8, "I", "T")
    director.fail(8)  # after its reader had been told that all is well
    assert site.back_up("Incremental", "write -P 9 8M 64k") == Job(9, "I", "T")
    log = director.log
    assert log.count("was committed: the next one starts from it.") == 7
    assert "was committed, but the director's job has failed after that" in log
    assert "The reader of the stream has gone" in log  # what the reader of the third said
    bitmaps = [name for names in site.machine.bitmaps().values() for name in names if "-end-" not in name]
    assert len(bitmaps) == 3  # the full's, the newest's, and the one before
    director.console("restore client=host-fd fileset=vbackup-web select current all done yes", "wait")
    assert director.jobs()[-1].status == "T"
    repository = site.images / "restored" / "vbackup"
    [uuid] = Repository.open(repository).uuids()
    backups = Repository.open(repository).catalogue(uuid).history.backups
    # The director restores the full, the differential, and what came after it.
    assert [one.level for one in backups] == [Level.FULL, Level.DIFFERENTIAL, Level.INCREMENTAL]
    for one, job_id in zip(backups, (1, 7, 9)):
        output = site.images / f"out-{job_id}"
        command("-q", "restore", "web", "-r", repository, "--backup", one.id, "--output", output)
        compare(output / "vda.qcow2", site.expected[job_id])
    command("verify", "web", "-r", repository)
    [example] = examples("vbackup restore web")  # as a new domain
    words = example.replace("/var/lib/vbackup/restored", str(site.images / "restored"))
    output = site.images / "new"
    command("-c", daemon.uri, *shlex.split(words.replace("/srv/restored", str(output)))[1:])
    assert daemon.defined("web2").name == "web2"
    compare(output / "vda.qcow2", site.expected[9])
    assert not list((site.images / "stage").glob("*.log"))
    assert not list((site.images / "stage").glob("*/*.partial"))


@pytest.mark.long
def test_restore_of_single_jobs_in_the_order_of_their_ids(site: Site, command: Command) -> None:
    """The files of all jobs have names of their own, so none takes the place of another."""
    for level, write in (("Full", "write -P 1 0 2M"), ("Incremental", "write -P 2 1M 1M")):
        assert site.back_up(level, write).status == "T"
    site.director.console("restore jobid=1,2 client=host-fd all done yes", "wait")
    assert site.director.jobs()[-1].status == "T"
    # Again, with the second job alone: without its base it is refused, and the director hears of that.
    (site.images / "restored").rename(site.images / "first")
    site.director.console("restore jobid=2 client=host-fd all done yes", "wait")
    assert "is missing from the repository" in (site.images / "restored" / "vbackup.log").read_text()
    assert site.director.jobs()[-1].status != "T"
    command("-q", "restore", "web", "-r", site.images / "first" / "vbackup", "--output", site.images / "out")
    compare(site.images / "out" / "vda.qcow2", site.expected[2])
