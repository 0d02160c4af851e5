"""Long work of the Cockpit page: integrations/cockpit/work.py as the page runs it, and a program in vbackup's place."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import namespaces
from tests.daemon import wait_for

SOURCE = Path(__file__).parents[2] / "integrations" / "cockpit" / "work.py"
#: It reports its arguments, waits for a file if it is told one, and ends as it is told, also by a signal.
PROGRAM = """#!{python} -IS
import json, os, signal, sys, time
asked = json.loads(sys.argv[1])
print(json.dumps({{"event": "step", "message": "begun"}}), file=sys.stderr, flush=True)
def end(number, frame):
    print(json.dumps({{"schema": "vbackup.error/1", "message": "Stopped by SIGTERM."}}), flush=True)
    os._exit(128 + number)
signal.signal(signal.SIGTERM, end)
while asked.get("file") and not os.path.exists(asked["file"]):
    time.sleep(0.01)
print(asked.get("says", ""), flush=True)
if asked.get("signal"):
    os.kill(os.getpid(), asked["signal"])
sys.exit(asked.get("status", 0))
"""


class Page:
    """What the page does."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "bin").mkdir()
        program = directory / "bin" / "vbackup"
        program.write_text(PROGRAM.format(python=sys.executable))
        program.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{directory / 'bin'}:{os.environ['PATH']}",
            "VBACKUP_STATE": str(directory / "state"),
        }

    def run(self, *words: str, given: Any = None) -> subprocess.CompletedProcess[str]:
        """As cockpit.spawn does: the text of the program as an argument, and nothing that stays open."""
        argv = [sys.executable, "-I", "-c", SOURCE.read_text(), *words]
        return subprocess.run(
            argv,
            input="" if given is None else json.dumps(given),
            capture_output=True,
            text=True,
            check=False,
            env=self.environment,
            timeout=30,
        )

    def __call__(self, *words: str, given: Any = None) -> Any:
        done = self.run(*words, given=given)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def start(self, title: str = "Work", kind: str = "backup", **asked: Any) -> dict[str, Any]:
        return dict(self("start", given={"argv": [json.dumps(asked)], "title": title, "kind": kind}))

    def show(self, known: dict[str, Any]) -> dict[str, Any]:
        return dict(self("show", known["id"]))

    def wait(self, known: dict[str, Any]) -> dict[str, Any]:
        wait_for(lambda: self.show(known)["state"] != "running", "the end of the work")
        return self.show(known)


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return Page(tmp_path)


def test_work_goes_on_after_the_one_who_began_it(page: Page, tmp_path: Path) -> None:
    known = page.start(
        title="Backup of w\u00e9b\n<b>%n $x", file=str(tmp_path / "go"), says='{"schema": "vbackup.backup/1"}'
    )
    assert known["state"] == "running"
    wait_for(lambda: page.show(known)["progress"] != [], "the first report")
    assert json.loads(page.show(known)["progress"][0])["message"] == "begun"
    assert [one["id"] for one in page("list")["works"]] == [known["id"]]
    (tmp_path / "go").touch()
    ended = page.wait(known)
    assert (ended["state"], ended["status"], ended["result"]) == ("ended", 0, {"schema": "vbackup.backup/1"})
    assert ended["started"] <= ended["ended"] <= time.time()
    assert ended["title"] == "Backup of w\u00e9b\n<b>%n $x"


def test_records_are_for_their_owner_alone(page: Page, tmp_path: Path) -> None:
    page.wait(page.start())
    for path in ((tmp_path / "state"), *(tmp_path / "state").rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
        assert path.is_dir() or stat.S_IMODE(path.stat().st_mode) == 0o600
    (tmp_path / "state" / "cockpit").chmod(0o777)
    refused = page.run("list")
    assert refused.returncode == 2
    assert "can be written by others" in refused.stderr


@pytest.mark.parametrize(
    ("asked", "status"), [({"status": 7}, 7), ({"signal": int(signal.SIGKILL)}, 128 + signal.SIGKILL)]
)
def test_how_it_ended(page: Page, asked: dict[str, int], status: int) -> None:
    ended = page.wait(page.start(**asked))
    assert (ended["state"], ended["status"]) == ("ended", status)


def test_work_that_was_killed_is_lost_and_no_other_process_is_taken_for_it(page: Page, tmp_path: Path) -> None:
    known = page.start(file=str(tmp_path / "never"))
    lock = Path(known["path"]) / "lock"
    wait_for(lambda: lock.exists() and bool(lock.read_text()), "the beginning")
    worker = int(lock.read_text())
    child = int(Path(f"/proc/{worker}/task/{worker}/children").read_text())
    for pid in (worker, child):
        os.kill(pid, signal.SIGKILL)
    assert page.wait(known)["state"] == "lost"
    lock.write_text(f"{os.getpid()}\n")  # as if the number had been used again
    assert page.show(known)["state"] == "lost"
    refused = page.run("stop", known["id"])
    assert (refused.returncode, refused.stderr) == (2, "The work has ended already.\n")


def test_stop_ends_vbackup_by_its_own_rules(page: Page, tmp_path: Path) -> None:
    known = page.start(file=str(tmp_path / "never"))
    wait_for(lambda: page.show(known)["progress"] != [], "the first report")
    assert "goes on" in page.run("remove", known["id"]).stderr
    page("stop", known["id"])
    ended = page.wait(known)
    assert (ended["status"], ended["result"]["message"]) == (128 + signal.SIGTERM, "Stopped by SIGTERM.")
    page("remove", known["id"])
    assert page("list")["works"] == []
    assert page.run("show", known["id"]).stderr == "There is no such work any more.\n"


def test_command_that_is_not_there_is_said(page: Page, tmp_path: Path) -> None:
    (tmp_path / "bin" / "vbackup").unlink()
    page.environment["PATH"] = os.environ["PATH"].replace(str(Path(sys.executable).parent), "/nonexistent")
    ended = page.wait(page.start())
    assert (ended["status"], ended["reason"]) == (127, "vbackup: No such file or directory")


def test_old_records_and_files_that_nobody_fetched_go(page: Page) -> None:
    fetched, kept = page.start(kind="download"), page.start(kind="backup")
    for known in (fetched, kept):
        page.wait(known)
        path = Path(known["path"]) / "work.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "started": time.time() - 2 * 86400}))
    new = page.start()
    assert {one["id"] for one in page("list")["works"]} == {kept["id"], new["id"]}
    page.wait(new)


def test_a_damaged_record_hides_no_other_and_holds_nothing_up(page: Page) -> None:
    damaged, good = page.start(), page.start()
    for known in (damaged, good):
        page.wait(known)
    (Path(damaged["path"]) / "work.json").write_text("{")
    assert [one["id"] for one in page("list")["works"]] == [good["id"]]
    assert page.wait(page.start())["status"] == 0


def test_a_signal_before_vbackup_has_begun_reaches_it(page: Page, tmp_path: Path) -> None:
    """Between the lock, which names the process, and vbackup: it must neither be lost nor leave vbackup alone."""
    directory = tmp_path / "record"
    directory.mkdir()
    (directory / "progress").touch()
    (directory / "work.json").write_text(json.dumps({"argv": [json.dumps({"file": str(tmp_path / "never")})]}))
    early = (
        "import os, signal, subprocess\n"
        "begin = subprocess.Popen\n"
        "def signalled(*words, **named):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return begin(*words, **named)\n"
        "subprocess.Popen = signalled\n"
    )
    argv = [sys.executable, "-I", "-c", early + SOURCE.read_text().replace("from __future__ import annotations", "")]
    done = subprocess.run([*argv, "run", str(directory)], env=page.environment, check=False, timeout=30)
    status = json.loads((directory / "end.json").read_text())["status"]
    assert status == 128 + signal.SIGTERM
    assert done.returncode in (0, status)


@pytest.mark.parametrize(
    ("words", "given", "said"),
    [
        (["start"], {"argv": []}, "list of strings"),
        (["start"], {"argv": ["a\0b"]}, "list of strings"),
        (["start"], {"argv": "backup"}, "list of strings"),
        (["start"], [], "list of strings"),
        (["show", "../../etc"], None, "no such work"),
        (["nothing"], None, "Commands are"),
        ([], None, "Commands are"),
    ],
)
def test_bad_input_is_refused(page: Page, words: list[str], given: Any, said: str) -> None:
    refused = page.run(*words, given=given)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert page("list")["works"] == []


@pytest.mark.parametrize("fails", [False, True])
def test_systemd_gets_a_unit_where_it_runs(
    page: Page, tmp_path: Path, fails: bool, unit: Callable[[bool], Path]
) -> None:
    told = unit(fails)
    known = page.start(title="Backup of 100%\nweb")
    assert page.wait(known)["status"] == 0  # also where systemd could not be asked
    argv = json.loads(told.read_text())
    assert f"--unit=vbackup-cockpit-{known['id']}" in argv
    assert "--description=vbackup: Backup of 100%% web" in argv
    assert f"--setenv=VBACKUP_STATE={tmp_path / 'state'}" in argv
    assert argv[argv.index("--") + 1 :] == [sys.executable, "-I", f"{known['path']}/work.py", "run", known["path"]]


@pytest.fixture
def unit(page: Page, tmp_path: Path) -> Iterator[Callable[[bool], Path]]:
    """A systemd-run that keeps what it was told, and does it or fails."""
    if namespaces.reason_not_to_enter() is not None:
        pytest.skip("only root's work is a unit of the system, and only in a namespace it can seem to run")

    def make(fails: bool) -> Path:
        program = tmp_path / "bin" / "systemd-run"
        program.write_text(
            f"#!{sys.executable} -IS\nimport json, os, sys\n"
            f"open({str(tmp_path / 'told')!r}, 'w').write(json.dumps(sys.argv))\n"
            f"if {fails}: sys.exit(1)\nargv = sys.argv[sys.argv.index('--') + 1:]\n"
            "os.fork() or (os.setsid(), os.dup2(os.open(os.devnull, os.O_RDWR), 1), os.execv(argv[0], argv))\n"
        )
        program.chmod(0o755)
        return tmp_path / "told"

    Path("/run/systemd/system").mkdir(parents=True)
    yield make
    shutil.rmtree("/run/systemd")
