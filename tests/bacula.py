"""Bacula's director, storage daemon and file daemon, unpacked from Debian's packages, on ports of loopback.

Nothing is installed: no user, no service. What ``vbackup engine config`` prints is their configuration, beside the few
resources that a director always has. The ports are those of Debian: the tests' network is theirs alone
(tests.namespaces).
"""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests import namespaces
from tests.daemon import wait_for

ENGINES = Path(__file__).parents[1] / "build" / "engines"
_SCHEMA = "usr/share/dbconfig-common/data/bacula-director-sqlite3/install/sqlite3"

DIRECTOR = """\
Director {{
  Name = bacula-dir
  DIRport = 9101
  DirAddress = 127.0.0.1
  Password = "console"
  QueryFile = "{engines}/etc/bacula/scripts/query.sql"
  WorkingDirectory = "{work}"
  PidDirectory = "{work}"
  Maximum Concurrent Jobs = 20
  Messages = Standard
}}
Catalog {{
  Name = MyCatalog
  dbname = "bacula"
  dbuser = ""
  dbpassword = ""
}}
Messages {{
  Name = Standard
  append = "{work}/job.log" = all, !skipped
  catalog = all
}}
Storage {{
  Name = File1
  Address = 127.0.0.1
  SDPort = 9103
  Password = "storage"
  Device = Device
  Media Type = File
  Maximum Concurrent Jobs = 10
}}
Pool {{
  Name = File
  Pool Type = Backup
  Label Format = "Vol-"
  AutoPrune = no
  Volume Retention = 365 days
}}
@{work}/vbackup-dir.conf
"""

STORAGE = """\
Storage {{
  Name = bacula-sd
  SDPort = 9103
  SDAddress = 127.0.0.1
  WorkingDirectory = "{work}"
  Pid Directory = "{work}"
  Maximum Concurrent Jobs = 20
}}
Director {{
  Name = bacula-dir
  Password = "storage"
}}
Device {{
  Name = Device
  Media Type = File
  Archive Device = "{work}/volumes"
  LabelMedia = yes
  Random Access = yes
  AutomaticMount = yes
  RemovableMedia = no
  AlwaysOpen = no
}}
Messages {{
  Name = Standard
  director = bacula-dir = all
}}
"""

FILE = """\
FileDaemon {{
  Name = host-fd
  FDport = 9102
  FDAddress = 127.0.0.1
  WorkingDirectory = "{work}"
  Pid Directory = "{work}"
  Maximum Concurrent Jobs = 20
  Plugin Directory = {engines}/usr/lib/bacula
}}
Messages {{
  Name = Standard
  director = bacula-dir = all, !skipped, !restored
}}
@{work}/vbackup-fd.conf
"""

CONSOLE = """\
Director {
  Name = bacula-dir
  DIRport = 9101
  Address = 127.0.0.1
  Password = "console"
}
"""


def reason_not_to_start() -> str | None:
    """Why the daemons cannot run here, or None."""
    if os.geteuid() != 0 or namespaces.reason_not_to_enter():
        return "Bacula's ports need a network namespace"
    if not (ENGINES / "usr/sbin/bacula-dir").exists():
        return "'make check-engines' unpacks Bacula"
    return None


@dataclass(frozen=True)
class Job:
    """A job as the catalog has it."""

    id: int
    level: str  #: F, I, D; R or a blank for a restore
    status: str  #: T: terminated normally, E: error, A: cancelled, R: running


class Bacula:
    """The three daemons in the foreground of separate processes. A context manager."""

    def __init__(self, work: Path, *, config: str, environment: Mapping[str, str]) -> None:
        """``config`` is what ``vbackup engine config`` printed."""
        self.work = work
        director, file_daemon = re.split(r"(?m)^# ---- bacula-fd.conf.*$", config)
        (work / "volumes").mkdir(parents=True)
        texts = {
            "dir.conf": DIRECTOR.format(work=work, engines=ENGINES),
            "sd.conf": STORAGE.format(work=work),
            "fd.conf": FILE.format(work=work, engines=ENGINES),
            "bconsole.conf": CONSOLE,
            "vbackup-dir.conf": director,
            "vbackup-fd.conf": file_daemon,
        }
        for name, text in texts.items():
            (work / name).write_text(text)
        with sqlite3.connect(work / "bacula.db") as catalog:
            catalog.executescript((ENGINES / _SCHEMA).read_text())
        catalog.close()
        libraries = f"{ENGINES}/usr/lib/bacula:{ENGINES}/usr/lib/x86_64-linux-gnu"
        self._environment = {**os.environ, **environment, "LD_LIBRARY_PATH": libraries}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Bacula:
        try:
            for name in ("sd", "fd", "dir"):
                log = (self.work / f"{name}.out").open("wb")
                # A name without a slash is looked for in /etc/bacula.
                argv = [f"{ENGINES}/usr/sbin/bacula-{name}", "-f", "-P", "-c", f"./{name}.conf"]
                with log:
                    self._daemons.append(
                        subprocess.Popen(argv, cwd=self.work, env=self._environment, stdout=log, stderr=log)
                    )
            wait_for(lambda: "Version" in self._console("version"), "the director's start")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        for process in reversed(self._daemons):
            process.terminate()
        for process in self._daemons:
            process.wait(timeout=30)

    def console(self, *commands: str) -> str:
        """Give commands to bconsole, and return what it prints."""
        said = self._console(*commands)
        assert "Director authorization" not in said, said
        return said

    def _console(self, *commands: str) -> str:
        text = "".join(f"{command}\n" for command in [*commands, "quit"])
        done = subprocess.run(
            [f"{ENGINES}/usr/sbin/bconsole", "-c", "./bconsole.conf"],
            *(),
            cwd=self.work,
            env=self._environment,
            input=text,
            text=True,
            capture_output=True,
            check=False,
            timeout=120,
        )
        return done.stdout + done.stderr

    def run(self, job: str, level: str) -> Job:
        """Run a backup job to its end."""
        self.console(f"run job={job} level={level} yes", "wait")
        return self.jobs()[-1]

    def fail(self, job_id: int) -> None:
        """Let a job have failed after its file daemon's part, as with a catalog that cannot be written."""
        catalog = sqlite3.connect(self.work / "bacula.db", timeout=30)
        with catalog:
            catalog.execute("UPDATE Job SET JobStatus = 'E' WHERE JobId = ?", (job_id,))
        catalog.close()

    def jobs(self) -> list[Job]:
        """All jobs, the oldest first."""
        catalog = sqlite3.connect(f"file:{self.work / 'bacula.db'}?mode=ro", uri=True)
        try:
            return [Job(*row) for row in catalog.execute("SELECT JobId, Level, JobStatus FROM Job ORDER BY JobId")]
        finally:
            catalog.close()

    @property
    def log(self) -> str:
        """What all jobs have said."""
        return (self.work / "job.log").read_text()


def program(path: Path) -> Path:
    """Write a program that is this Python's vbackup, and return its path."""
    top = Path(__file__).parents[1]
    path.write_text(f'#!/bin/sh\nPYTHONPATH={top} exec {sys.executable} -m vbackup "$@"\n')
    path.chmod(0o755)
    return path
