"""``vbackup mount``, ``umount`` and ``serve`` as processes of their own: right bytes of every point, and every end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import site
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import pytest

import vbackup
from tests import documents
from tests.daemon import wait_for
from tests.lab import HEEDING_SIGNALS
from tests.recorded import MIB, Recorded, Write, story
from tests.unit.builders import UUID
from vbackup.images import mount_lock, mount_points
from vbackup.model import Level
from vbackup.repository import verification
from vbackup.repository.verification import Verdict, Verification

needs_fuse = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse")
NOBODY = 65534
COMMAND = [*HEEDING_SIGNALS, sys.executable, "-m", "vbackup"]
TIB = 1 << 40


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return story(tmp_path_factory.mktemp("mount") / "repository")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose path is short enough for sockets; whatever a test leaves mounted there is unmounted."""
    path = Path(tempfile.mkdtemp(prefix="vb-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    for directory in path.iterdir():
        for file in mount_points.mounted_in(directory):
            mount_points.unmount(file, is_forced=True)
    shutil.rmtree(path)


class Run:
    """Runs ``vbackup`` on a repository."""

    def __init__(self, repository: Path, prefix: list[str] | None = None, **environment: str) -> None:
        self._argv = [*(prefix or []), *COMMAND, "-r", str(repository)]
        self._environment = {**os.environ, **environment}

    def __call__(self, *words: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
        argv = [*self._argv, *map(str, words)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env=self._environment, timeout=60)
        assert done.returncode == status, done
        assert "Traceback" not in done.stderr
        return done

    @contextmanager
    def started(self, *words: str | Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
        """A command in the foreground, and its JSON document."""
        argv = [*self._argv, *map(str, words), "--json"]
        with subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self._environment
        ) as process:
            assert process.stdout is not None
            try:
                yield process, document(process.stdout)
            finally:
                process.kill()


def document(stream: IO[str]) -> dict[str, Any]:
    """The JSON document that is the first line of the stream; it goes on."""
    line = stream.readline()
    documents.check_output(line)
    return dict(json.loads(line))


@pytest.fixture
def run(told: Recorded) -> Run:
    return Run(told.repository.path)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit status of a process, and what it has said on standard error."""
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def daemons(repository: Path) -> list[int]:
    """Storage daemons that have images of the repository open."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = line.read_bytes().split(b"\0")
            directory = (line.parent / "cwd").readlink()
        except OSError:
            continue  # it has ended
        if words[0].endswith(b"qemu-storage-daemon") and repository in directory.parents:
            found.append(int(line.parent.name))
    return found


def digests(repository: Path) -> dict[Path, tuple[str, int, int]]:
    """Content, owner and mode of all files."""
    return {
        path: (sha256(path.read_bytes()).hexdigest(), path.stat().st_uid, path.stat().st_mode)
        for path in repository.rglob("*")
        if path.is_file()
    }


# what is shown


@needs_fuse
def test_every_point_is_shown_as_raw_files(told: Recorded, run: Run, place: Path) -> None:
    before = digests(told.repository.path)
    for one in told.backups:
        shown = json.loads(run("mount", "web", one.id, place / "m", "--json").stdout)
        assert shown["id"] == one.id
        assert {entry["dev"] for entry in shown["disks"]} == {disk.dev for disk in one.disks}
        for entry in shown["disks"]:
            path = Path(entry["file"])
            assert path == place / "m" / f"{entry['dev']}.raw"
            assert path.stat().st_size == entry["size_bytes"]
            assert path.read_bytes() == told.contents[one.id, entry["dev"]]
            with pytest.raises(OSError, match=r"denied|Read-only"), path.open("r+b", buffering=0) as opened:
                opened.write(b"x")
        assert "is unmounted" in run("umount", place / "m").stdout
        assert not (place / "m").exists()
    assert digests(told.repository.path) == before
    assert daemons(told.repository.path) == []


@needs_fuse
def test_point_of_a_target_is_fetched_and_shown(told: Recorded, place: Path) -> None:
    """From the working directory's relative paths, and what was fetched is gone at the end."""
    shutil.copytree(told.repository.path, place / "repository")
    run = Run(place / "repository")
    run("copy", "web", "--to", place / "target")
    shutil.rmtree(place / "repository")
    at = ("--from", os.path.relpath(place / "target"), "--cache", os.path.relpath(place / "cache"))
    one = told.backups[-1]
    shown = json.loads(run("mount", "web", one.id, place / "m", *at, "--json").stdout)
    for entry in shown["disks"]:
        assert Path(entry["file"]).read_bytes() == told.contents[one.id, entry["dev"]]
    assert len(list((place / "cache").glob("*/run-*/*/*/*.qcow2"))) > len(shown["disks"])
    run("umount", place / "m")
    wait_for(lambda: not list((place / "cache").glob("*/run-*")), "the end of the mount")
    with run.started("serve", "web", "--nbd", place / "nbd", *at) as (process, served):
        for each in served["disks"]:
            assert over_nbd(each["uri"], place / "out") == told.contents[one.id, each["dev"]]
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (0, "")
    assert not list((place / "cache").glob("*/run-*"))


@needs_fuse
def test_disks_of_different_moments_and_a_part_of_them(told: Recorded, run: Run, place: Path) -> None:
    first, second, *_ = told.backups
    done = run("mount", "web", second.id, place / "m", "--disk", "vda", "vdb", "--mixed")
    assert f"vdb of {first.id}): what spans them may not fit together" in done.stderr
    assert f"of {first.id})" in done.stdout
    assert (place / "m" / "vda.raw").read_bytes() == told.contents[second.id, "vda"]
    assert (place / "m" / "vdb.raw").read_bytes() == told.contents[first.id, "vdb"]
    run("umount", place / "m")
    run("mount", "--domain", "web", place / "m", "--at", "2100-01-01", "--disk", "vdb")
    assert [path.name for path in (place / "m").glob("*.raw")] == ["vdb.raw"]
    run("umount", place / "m")


@needs_fuse
def test_huge_disk_and_images_of_an_older_vbackup(place: Path) -> None:
    made = Recorded(place / "repository")
    made.add({"vda": [Write(TIB - MIB, MIB, 7)]}, level=Level.FULL, size_bytes=TIB, is_huge=True, has_lists=False)
    run = Run(place / "repository")
    run("mount", "web", place / "m")
    with (place / "m" / "vda.raw").open("rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == TIB - MIB
        file.seek(TIB - 1)
        assert file.read() == b"\7"
    run("umount", place / "m")


@needs_fuse
def test_what_a_verify_has_found_is_said(place: Path) -> None:
    made = story(place / "repository")
    newest = made.backups[-1]
    directory = made.repository.directory(UUID, newest.id)
    found = verification.document(Verification(datetime.now(timezone.utc), Verdict.DAMAGED, 100.0, 1))
    (directory / verification.NAME).write_text(json.dumps({"schema": verification.SCHEMA, **found}))
    run = Run(place / "repository")
    assert f"found damage in backup {newest.id}" in run("mount", "web", place / "m").stderr
    run("umount", place / "m")
    with made.path(newest).open("r+b") as file:
        file.seek(8)
        file.write(b"\0" * 12)  # the header's backing file
    assert "header" in run("mount", "web", place / "new", status=6).stderr
    assert not (place / "new").exists()


@needs_fuse
def test_backup_that_is_mounted_is_not_removed(told: Recorded, place: Path) -> None:
    copy = told.copied(place / "repository")
    run = Run(copy.repository.path)
    run("mount", "web", copy.backups[1].id, place / "m", "-q")
    pruned = json.loads(run("prune", "web", "--keep-last", "1", "--json").stdout)
    assert "in use" in str(pruned)
    assert copy.path(copy.backups[0]).exists()
    assert (place / "m" / "vda.raw").read_bytes() == copy.contents[copy.backups[1].id, "vda"]
    run("umount", place / "m")


# how it ends


@needs_fuse
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_is_the_usual_end_of_the_foreground(run: Run, place: Path, number: signal.Signals) -> None:
    (place / "m").mkdir()
    with run.started("mount", "web", place / "m", "--foreground") as (process, shown):
        assert shown["pid"] == mount_lock.holder(place / "m")
        process.send_signal(number)
        assert ended(process) == (0, "")
    assert list((place / "m").iterdir()) == []


@needs_fuse
def test_unmounting_the_last_disk_by_hand_ends_it(told: Recorded, run: Run, place: Path) -> None:
    with run.started("mount", "web", place / "m", "--foreground") as (process, _):
        mount_points.unmount(place / "m" / "vda.raw", is_forced=False)
        assert (place / "m" / "vdb.raw").read_bytes() == told.contents[told.backups[-1].id, "vdb"]
        mount_points.unmount(place / "m" / "vdb.raw", is_forced=False)
        assert ended(process) == (0, "")
    assert not (place / "m").exists()


@needs_fuse
def test_disk_that_is_read_is_not_unmounted_without_force(told: Recorded, run: Run, place: Path) -> None:
    run("mount", "web", place / "m")
    reader = os.open(place / "m" / "vdb.raw", os.O_RDONLY)
    done = run("umount", place / "m", status=8)
    assert f"{place}/m/vdb.raw is in use: " in done.stderr
    assert f"(pid {os.getpid()})" in done.stderr
    assert (place / "m" / "vda.raw").read_bytes() == told.contents[told.backups[-1].id, "vda"]
    run("umount", place / "m", "--force")
    with pytest.raises(OSError, match="connect"):
        os.read(reader, 4096)
    with suppress(OSError):
        os.close(reader)
    assert not (place / "m").exists()


@needs_fuse
def test_directory_has_one_mount(run: Run, place: Path) -> None:
    run("mount", "web", place / "m")
    assert "is mounted at" in run("mount", "web", place / "m", status=8).stderr
    run("umount", place / "m")
    assert "No backup is mounted" in run("umount", place / "m", status=7).stderr


def kill_vbackup(pid: int, _daemon: int) -> None:
    os.kill(pid, signal.SIGKILL)


def kill_both(pid: int, daemon: int) -> None:
    """The daemon has no time to unmount."""
    os.kill(daemon, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    os.kill(daemon, signal.SIGKILL)


@needs_fuse
@pytest.mark.parametrize("kill", [kill_vbackup, kill_both])
@pytest.mark.parametrize("by", ["umount", "mount"])
def test_what_a_killed_mount_leaves_is_removed(
    told: Recorded, run: Run, place: Path, kill: Callable[[int, int], None], by: str
) -> None:
    pid = json.loads(run("mount", "web", place / "m", "--json").stdout)["pid"]
    [daemon] = daemons(told.repository.path)
    kill(pid, daemon)
    wait_for(lambda: not daemons(told.repository.path), "the end of the storage daemon")
    if kill is kill_both:
        with pytest.raises(OSError, match="connect"):  # "is not connected", or of the first request "abort"
            (place / "m" / "vda.raw").read_bytes()
    if by == "umount":
        assert "had been killed" in run("umount", place / "m").stdout
    else:
        assert "A mount that was killed" in run("mount", "web", place / "m").stderr
        assert (place / "m" / "vda.raw").read_bytes() == told.contents[told.backups[-1].id, "vda"]
        run("umount", place / "m")
    assert not (place / "m").exists()


@needs_fuse
def test_killed_daemon_ends_the_mount_with_a_message(told: Recorded, run: Run, place: Path) -> None:
    (place / "m").mkdir()
    with run.started("mount", "web", place / "m", "--foreground") as (process, _):
        [daemon] = daemons(told.repository.path)
        os.kill(daemon, signal.SIGKILL)
        status, said = ended(process)
    assert status == 1
    assert "qemu-storage-daemon was killed by SIGKILL. Nothing can be read" in said
    assert list((place / "m").iterdir()) == []


@needs_fuse
def test_error_in_the_background_is_that_of_the_command(run: Run, place: Path) -> None:
    (place / "m").mkdir()
    (place / "m" / "vda.raw").touch()
    assert "is not empty: it has vda.raw" in run("mount", "web", place / "m", status=7).stderr
    assert [path.name for path in (place / "m").iterdir()] == ["vda.raw"]
    assert "has no such disk" in run("mount", "web", place / "n", "--disk", "vdz", status=5).stderr
    assert "missing; create it first" in run("mount", "web", place / "n" / "m", status=7).stderr
    assert not (place / "n").exists()


# as somebody else than root


@pytest.fixture
def nobodys(told: Recorded, place: Path) -> Run:
    """As nobody, who has a copy of the repository and reaches vbackup, not its sources."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    shutil.copytree(Path(vbackup.__file__).parent, place / "lib" / "vbackup", ignore=shutil.ignore_patterns("hooks"))
    shutil.copytree(Path(vbackup.__file__).parent / "hooks", place / "lib" / "vbackup" / "hooks")
    told.copied(place / "home" / "repository")
    for path in (place / "home", *(place / "home").rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
    packages = [place / "lib", *map(Path, (path for path in site.getsitepackages() if Path(path).is_dir()))]
    tried = subprocess.run([*as_nobody, "ls", sys.executable, *packages], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"nobody may not run this Python: {tried.stderr}")
    return Run(
        place / "home" / "repository",
        as_nobody,
        PYTHONPATH=os.pathsep.join(map(str, packages)),
        PYTHONDONTWRITEBYTECODE="1",
    )


@needs_fuse
@pytest.mark.skipif(shutil.which("fusermount3") is None, reason="needs fusermount3")
def test_owner_of_a_repository_mounts_without_root(nobodys: Run, told: Recorded, place: Path) -> None:
    home, mounted = place / "home", place / "home" / "m"
    as_nobody = nobodys._argv[:5]
    expected = told.contents[told.backups[-1].id, "vda"]
    nobodys("mount", "web", mounted)
    done = subprocess.run([*as_nobody, "cat", mounted / "vda.raw"], capture_output=True, check=True)
    assert done.stdout == expected
    with pytest.raises(PermissionError):  # nobody else reads it, not even root
        (mounted / "vda.raw").read_bytes()
    reading = subprocess.Popen([*as_nobody, "tail", "-f", mounted / "vda.raw"], stdout=subprocess.PIPE)
    assert reading.stdout is not None
    reading.stdout.read(1)
    assert f"(pid {reading.pid})" in nobodys("umount", mounted, status=8).stderr
    reading.kill()
    reading.communicate()
    nobodys("umount", mounted)
    pid = json.loads(nobodys("mount", "web", mounted, "--json").stdout)["pid"]
    kill_both(pid, daemons(home)[0])
    assert "had been killed" in nobodys("umount", mounted).stdout
    assert not mounted.exists()
    pid = json.loads(nobodys("mount", "web", mounted, "--json").stdout)["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not daemons(home), "the end of the storage daemon")
    assert mount_points.mounted_in(mounted.resolve()) == []  # it has unmounted what it showed
    assert (mounted / "vda.raw").stat().st_mode & 0o777 == 0  # not to be taken for an empty disk
    nobodys("mount", "web", mounted)
    Run(home / "repository")("umount", mounted)  # root
    assert "may not write" in nobodys("mount", "web", "/etc/m", status=7).stderr


def test_what_is_missing_to_mount_is_said(nobodys: Run, told: Recorded, place: Path) -> None:
    (place / "bin").mkdir()
    for program in ("setpriv", "env", "qemu-storage-daemon", "qemu-img"):
        (place / "bin" / program).symlink_to(str(shutil.which(program)))
    nobodys._argv[0] = str(shutil.which("setpriv"))
    nobodys._environment["PATH"] = str(place / "bin")
    assert "(on Debian: fuse3)" in nobodys("mount", "web", place / "home" / "m", status=5).stderr
    told.repository.path.parent.chmod(0o700)
    other = [*nobodys._argv[:-1], str(told.repository.path)]
    nobodys._argv = other
    assert "vbackup runs as nobody, who may not enter" in nobodys("mount", "web", place / "home" / "m", status=7).stderr


# NBD


def over_nbd(uri: str, output: Path) -> bytes:
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", uri, output], check=True)
    return output.read_bytes()


def test_disks_are_served_by_nbd(told: Recorded, run: Run, place: Path) -> None:
    newest = told.backups[-1]
    (place / "s").mkdir()
    with run.started("serve", "web", "--nbd", place / "s" / "a b") as (process, served):
        assert {one["dev"]: one["size_bytes"] for one in served["disks"]} == {
            disk.dev: disk.virtual_size_bytes for disk in newest.disks
        }
        for one in served["disks"]:
            assert over_nbd(one["uri"], place / "out") == told.contents[newest.id, one["dev"]]
        assert (place / "s" / "a b").stat().st_mode & 0o777 == 0o600
        assert "listens on" in run("serve", "web", "--nbd", place / "s" / "a b", status=8).stderr
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (0, "")
    assert list((place / "s").iterdir()) == []


def test_what_is_written_to_a_served_disk_is_gone_at_the_end(told: Recorded, run: Run, place: Path) -> None:
    before = digests(told.repository.path)
    (place / "overlays").mkdir()
    words = ("serve", "web", told.backups[0].id, "--nbd", place / "s", "--writable", "--overlay", place / "overlays")
    expected = bytearray(told.contents[told.backups[0].id, "vda"])
    expected[MIB : 2 * MIB] = b"\x09" * MIB
    with run.started(*words) as (process, served):
        uri = served["disks"][0]["uri"]
        subprocess.run(
            ["qemu-io", "-f", "raw", "-c", "write -P 9 1M 1M", uri], check=True, stdout=subprocess.DEVNULL, timeout=60
        )
        assert over_nbd(uri, place / "out") == expected
        assert list((place / "overlays").iterdir()) == []  # it has no name, whatever is killed now
        os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not daemons(told.repository.path), "the end of the storage daemon")
    assert digests(told.repository.path) == before
    with run.started(*words[:5]) as (process, served):  # in place of the socket that the kill may have left
        assert over_nbd(served["disks"][0]["uri"], place / "out") == told.contents[told.backups[0].id, "vda"]


def test_served_disk_whose_daemon_is_killed_is_status_one(told: Recorded, run: Run, place: Path) -> None:
    with run.started("serve", "web", "--nbd", place / "s") as (process, _):
        os.kill(daemons(told.repository.path)[0], signal.SIGKILL)
        status, said = ended(process)
    assert (status, "killed by SIGKILL" in said) == (1, True)
    assert not (place / "s").exists()


def test_nothing_is_served_in_place_of_a_file(run: Run, place: Path) -> None:
    (place / "file").write_text("mine")
    assert "is no socket" in run("serve", "web", "--nbd", place / "file", status=7).stderr
    assert (place / "file").read_text() == "mine"
    assert "107 bytes" in run("serve", "web", "--nbd", place / ("x" * 108), status=2).stderr
    assert (
        "--overlay needs --writable" in run("serve", "web", "--nbd", place / "s", "--overlay", place, status=2).stderr
    )
