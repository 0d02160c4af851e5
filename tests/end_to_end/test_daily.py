"""Nights in which something is broken: each is in the exit status, report, message and metrics, and is told once."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import documents
from tests.daemon import wait_for
from tests.lab import DiskSpec, Machine, domain_xml
from tests.whole_system import DISK, System, system

if TYPE_CHECKING:
    from tests.daemon import Daemon

CONFIG = "/etc/vbackup/vbackup.toml"
#: With steps that some nights only have.
PRUNE, VERIFY = "/etc/vbackup/conf.d/prune.toml", "/etc/vbackup/conf.d/verify.toml"
COPIES = ("--copy-to", "away")
#: What an administrator adds to the proposal of 'config init'.
MORE = """
[notify.ops]
mail-to = "ops@example.org"

[metrics]
textfile = "/root/vbackup.prom"

[report]
html = "/root/report.html"
text = "/root/report.txt"

[target.away]
url = "/srv/away"
[target.away.copy]
recipient = "{recipient}"
[target.away.verify]
identity = "/etc/vbackup/key.txt"
"""


@dataclass
class Night:
    """What became of a run."""

    run: dict[str, Any]
    mails: list[tuple[str, str]]
    metrics: dict[str, float]  #: "NAME" or "NAME{domain}" or "NAME{job}"
    text: str  #: the report, in one line
    html: str

    def failed(self) -> dict[str, int]:
        """The steps that failed, with their statuses."""
        return {step["kind"]: step["status"] for step in self.run["steps"] if step["outcome"].endswith("failed")}

    def assert_told(self, subject: str, sentence: str) -> None:
        """It is in a message, and in both reports."""
        [(line, text)] = self.mails
        assert subject in line
        assert sentence in text
        assert sentence in self.text
        assert sentence in self.html


@dataclass
class Host:
    """A system with two virtual machines, set up as an administrator does it."""

    system: System
    daemon: Daemon
    images: Path
    machines: dict[str, Machine] = field(default_factory=dict)

    def boot(self, *names: str) -> None:
        for number, name in enumerate(names, start=1):
            spec = DiskSpec(self.images / f"{name}.qcow2", size="16M")
            spec.create()
            self.machines[name] = self.daemon.define(domain_xml(name, [spec.xml()]))
            self.machines[name].handle.domain.create()
            self.machines[name].write("vda", f"write -P {number} 0 1M")

    def set_up(self) -> None:
        self.system.run(f"vbackup init -r {DISK} && vbackup config init -r {DISK} --output {CONFIG}")
        for key in ("key", "other"):
            self.system.run(f"umask 077 && age-keygen -o /etc/vbackup/{key}.txt")
        recipient = self.system.run("age-keygen -y /etc/vbackup/key.txt").strip()
        file = self.system.inside(CONFIG)
        proposed = file.read_text().replace('#domains = ["db", "web"]', 'domains = ["db", "web"]')
        assert "\ndomains" in proposed
        # Prune and verify are in files of their own, so that a night that has nothing to do with them goes without. An
        # audit asks for more room than there is.
        backup, prune, rest = proposed.partition("[job.nightly.prune]")
        rules, verify, rest = rest.partition("[job.nightly.verify]")
        sample, told, rest = rest.partition("# Who is told")
        self.system.run("mkdir /srv/away /etc/vbackup/conf.d")
        self.system.inside(PRUNE).write_text(prune + rules)
        self.system.inside(VERIFY).write_text(verify + sample.replace("[job.nightly.audit]\nsample = 1\n", ""))
        file.write_text(backup + told + rest + MORE.format(recipient=recipient))
        assert "can be used" in self.system.run("vbackup config check")

    def with_step(self, file: str) -> AbstractContextManager[None]:
        """The nights of the block have the step of that file."""
        return self.broken(f"mv {file}.off {file}", f"mv {file} {file}.off")

    def night(self, status: int = 0, *options: str, before: str = "") -> Night:
        line = f"{before} vbackup run nightly {' '.join(options)} --json 2> /root/log"
        document = json.loads(self.system.run(line, status))
        documents.check(document)
        [run] = document["runs"]
        page = self.system.inside("/root/report.html").read_text()
        text = " ".join(self.system.inside("/root/report.txt").read_text().split())
        return Night(run, self.system.mails(), self.metrics(), text, page)

    def metrics(self) -> dict[str, float]:
        found = {}
        for line in self.system.inside("/root/vbackup.prom").read_text().splitlines():
            name, value = line.rsplit(" ", 1)
            labels = dict(re.findall(r'(\w+)="(.*?)"', name))
            of = labels.get("domain") or labels.get("backup_job") or labels.get("repository")
            if not line.startswith("#"):
                found[f"{name.partition('{')[0]}{{{of}}}" if of else name] = float(value)
        return found

    @contextmanager
    def broken(self, line: str, repair: str) -> Iterator[None]:
        self.system.run(line)
        try:
            yield
        finally:
            self.system.run(repair)

    def is_told_to_be_well(self, *options: str) -> None:
        """One good night, of which there is a message."""
        good = self.night(0, *options)
        [(subject, text)] = good.mails
        assert "nightly on " in subject
        assert ": works again: " in subject
        assert text.startswith("Nothing to do: nightly works again. It had failed since ")
        assert (good.metrics["vbackup_health"], good.metrics["vbackup_job_last_run_status{nightly}"]) == (0, 0)
        assert good.text.startswith("OK: Everything is backed up: 2 domains, the oldest ")


@pytest.fixture(scope="module")
def host(_daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """One host for all nights of this file: each test leaves it as it was."""
    daemon: Daemon = _daemon
    images = Path("/var/lib/libvirt/images/daily")
    images.mkdir(parents=True)
    images.chmod(0o755)
    try:
        with system(daemon, tmp_path_factory.mktemp("host"), "32m") as made:
            one = Host(made, daemon, images)
            one.boot("web", "db")
            one.set_up()
            first = one.night(0, *COPIES)
            assert (first.mails, first.failed(), first.metrics["vbackup_health"]) == ([], {}, 0)
            assert {"backup", "prune", "copy", "verify", "copy-verify"} <= {
                step["kind"] for step in first.run["steps"] if step["outcome"] == "done"
            }
            made.run(f"mv {PRUNE} {PRUNE}.off && mv {VERIFY} {VERIFY}.off")
            yield one
            daemon.clear()
    finally:
        shutil.rmtree(images)


def test_repository_that_is_not_mounted(host: Host) -> None:
    sentence = f"{DISK} is not a vbackup repository; is the disk mounted?"
    with host.broken(f"umount {DISK}", f"mount {DISK}"):
        night = host.night(7)
        night.assert_told("FAILED: nothing was backed up", sentence)
        assert (night.run["outcome"], night.failed()) == ("failed", {"backup": 7})
        assert night.text.startswith("CRITICAL: NOT KNOWN whether everything is backed up: main cannot be read. ")
        assert night.metrics["vbackup_repository_up{main}"] == 0
        assert night.metrics["vbackup_domain_remembered{web}"] == 1
        assert night.metrics["vbackup_domain_backups{web}"] > 0
        assert night.metrics["vbackup_job_last_run_status{nightly}"] == 7
        again = host.night(7)
        assert again.mails == []
        assert sentence in again.text
        assert list(host.system.inside(DISK).iterdir()) == []
    host.is_told_to_be_well()


def test_guest_that_is_gone(host: Host) -> None:
    xml = host.machines["db"].handle.domain.XMLDesc(2)
    host.machines["db"].destroy()
    host.machines["db"].handle.domain.undefine()
    night = host.night(3)
    night.assert_told("FAILED: db not backed up", "No domain")
    assert night.failed() == {"backup": 3}
    assert "libvirt does not have it any more, but job nightly names it." in night.text
    for name in ("vbackup_domain_gone", "vbackup_domain_failed"):
        assert (night.metrics[f"{name}{{db}}"], night.metrics[f"{name}{{web}}"]) == (1, 0)
    assert night.metrics["vbackup_job_last_run_status{nightly}"] == 3
    assert [one["outcome"] for one in night.run["domains"]] == ["failed", "done"]
    assert host.night(3).mails == []
    host.machines["db"] = host.daemon.define(xml)
    host.machines["db"].handle.domain.create()
    host.is_told_to_be_well()


def test_guest_that_ends_during_its_backup(host: Host) -> None:
    web = host.machines["web"]
    web.write("vda", "write -P 7 0 4M")
    pid = int(Path("/run/libvirt/qemu/web.pid").read_text())

    def kill() -> None:
        wait_for(lambda: bool(web.execute("query-jobs")), "a job in QEMU")
        os.kill(pid, signal.SIGKILL)

    with host.broken(f"sed -i 's/^quiesce.*/&\\nspeed = \"1M\"/' {CONFIG}", f"sed -i /^speed/d {CONFIG}"):
        killer = threading.Thread(target=kill)
        killer.start()
        night = host.night(3)
        killer.join()
    [fault] = night.run["steps"][0]["faults"]
    night.assert_told("FAILED: web not backed up", fault["message"])
    assert night.failed() == {"backup": 3}
    assert night.metrics["vbackup_domain_failed{web}"] == 1
    host.is_told_to_be_well()  # the machine is off now, and backed up all the same
    web.handle.domain.create()


def test_disk_that_is_full(host: Host) -> None:
    with host.broken("dd if=/dev/zero of=/srv/.disk/filler bs=64k 2> /dev/null || true", "rm /srv/.disk/filler"):
        with host.with_step(VERIFY):
            night = host.night(3)
        night.assert_told("FAILED: none of 2 domains was backed up", "no space left. Free some space")
        assert {step["kind"]: step["status"] for step in night.run["steps"]}["verify"] == 0
        assert night.failed() == {"backup": 3}
        assert {one["fault"]["code"] for one in night.run["domains"]} == {"NO_SPACE"}
        assert night.text.startswith("CRITICAL: ")
        assert "Repository main: Only 0.0 % of its filesystem is free." in night.text
        assert night.metrics["vbackup_repository_free_bytes{main}"] == 0
        assert [night.metrics[f"vbackup_domain_failed{{{name}}}"] for name in ("web", "db")] == [1, 1]
        assert host.night(3).mails == []
    host.is_told_to_be_well()


def test_wrong_key(host: Host) -> None:
    with host.broken(
        "cd /etc/vbackup && mv key.txt right.txt && cp -p other.txt key.txt", "cd /etc/vbackup && mv right.txt key.txt"
    ):
        night = host.night(6, *COPIES)
        night.assert_told("FAILED: verify of the copies (away) failed", "No identity that was given opens ")
        assert night.failed() == {"copy-verify": 6}
        assert night.metrics["vbackup_job_last_run_status{nightly}"] == 6
        assert night.metrics["vbackup_job_health{nightly}"] > 0
        assert host.night(6, *COPIES).mails == []
    host.is_told_to_be_well(*COPIES)


def test_clock_that_is_a_year_ahead(host: Host) -> None:
    before = set(backups(host))
    with host.with_step(PRUNE):
        ahead = host.night(before="faketime -f +365d")
    ahead.assert_told(
        "UNUSUAL: The last run that is not in doubt began at ", "the machine was off for long, or the clock is wrong."
    )
    assert {step["kind"] for step in ahead.run["steps"] if step["outcome"] == "skipped"} >= {"prune"}
    assert before < set(backups(host))
    assert ahead.metrics["vbackup_job_health{nightly}"] == 1
    with host.with_step(PRUNE):
        again = host.night(before="faketime -f +366d")
    assert again.mails == []  # it is still so, which was told; nor is anything removed
    assert {step["kind"] for step in again.run["steps"] if step["outcome"] == "skipped"} >= {"prune"}
    right = host.night()
    right.assert_told("UNUSUAL: The clock says ", "the clock has been set back, or was wrong then.")
    assert " of domain web is of the future: the clock is wrong, or was when it was made." in right.mails[0][1]
    after = host.night()
    assert after.mails == []  # a backup of the future is there until then
    assert "is of the future" in after.text


def backups(host: Host) -> list[str]:
    return [path.name for path in host.system.inside(DISK).glob("*/*Z-*")]
