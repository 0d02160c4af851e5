"""The helper, in a process of this host: what it carries out, and what it does when its line is lost."""

from __future__ import annotations

import ast
import base64
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon import wait_for
from tests.unit.remote.conftest import Virsh, begin
from vbackup.errors import LinkLostError, RemoteError
from vbackup.process import Process
from vbackup.remote import command, connection
from vbackup.remote.connection import Connection

UUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"
JOB, NODE = "vbackup-0123456789ab-20260101T000000Z-full-vda", "vbackup-0123456789ab-vda"


def test_its_syntax_is_that_of_python_3_6_and_it_needs_nothing_else() -> None:
    tree = _parsed(connection.source())
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names])
    }
    assert imported <= sys.stdlib_module_names
    # Names that later versions added; 3.6 would fail as it comes to them.
    assert not {"capture_output", "removeprefix", "unlink_missing_ok", "asyncio.run"} & set(_words(tree))
    # Annotations are evaluated as a function is defined, and list[str] is an error before 3.9.
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation is not None:
            assert not isinstance(node.annotation, (ast.Subscript, ast.BinOp)), node.arg
        if isinstance(node, ast.FunctionDef) and node.returns is not None:
            assert not isinstance(node.returns, (ast.Subscript, ast.BinOp)), node.name


def _parsed(source: str) -> ast.Module:
    """Parse it as Python 3.6; in a thread's or a collector's way, Python up to 3.11 may fail (gh-106905)."""
    while True:
        try:
            return ast.parse(source, feature_version=(3, 6))
        except SystemError as err:
            if "recursion depth mismatch" not in str(err):
                raise


def _words(tree: ast.AST) -> list[str]:
    return [node.arg or "" for node in ast.walk(tree) if isinstance(node, ast.keyword)]


def test_files(helper: Connection, tmp_path: Path) -> None:
    path = tmp_path / "made"
    handle = helper.call("create", what="make", path=str(path), mode=0o640)
    helper.call("write", what="write", handle=handle, data=base64.b64encode(b"abc").decode())
    assert not path.exists()
    helper.call("commit", what="make", handle=handle)
    assert path.read_bytes() == b"abc"
    assert path.stat().st_mode & 0o777 == 0o640
    handle = helper.call("open", what="read", path=str(path))
    assert helper.call("read", what="read", handle=handle, offset=1, size=10) == base64.b64encode(b"bc").decode()
    helper.call("close", what="read", handle=handle)
    with pytest.raises(RemoteError, match=r"could not read on hv1: .*not a regular file"):
        helper.call("open", what="read", path="/dev/null")
    with pytest.raises(RemoteError, match="No such file or directory") as missing:
        helper.call("open", what="read", path=str(tmp_path / "missing"))
    assert missing.value.errno == 2


def test_file_that_was_begun_goes_with_the_line(helper: Connection, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    helper.call("create", what="make", path=str(place / "made"), mode=0o600)
    assert [path.name.startswith(".made.") for path in place.iterdir()] == [True]
    helper.close()
    assert list(place.iterdir()) == []


def test_unfinished_files_of_a_helper_that_was_killed_are_removed_by_the_next(
    helper: Connection, tmp_path: Path
) -> None:
    images, kept = tmp_path / "images", tmp_path / "kept"
    for path in (images, kept, images / ".vbackup-aaaaaaaa"):  # the last one is of somebody who has just made it
        path.mkdir()
    (kept / ".vbackup-lock").write_text("locked\n")
    (images / ".vbackup-bbbbbbbb").symlink_to(kept)
    others = {path.name for path in images.iterdir()}
    killed = begin(["sh", "-c", command.bootstrap()])
    dead = Path(killed.call("stage", what="stage", directory=str(images)))
    (dead / "image").write_bytes(b"x")
    own = Path(helper.call("stage", what="stage", directory=str(images)))
    assert {path.name for path in images.iterdir()} == {*others, dead.name, own.name}
    killed._process.kill()
    killed.close()
    assert dead.exists()
    new = Path(helper.call("stage", what="stage", directory=str(images)))
    assert {path.name for path in images.iterdir()} == {*others, own.name, new.name}
    assert list(kept.iterdir()) == [kept / ".vbackup-lock"]
    helper.call("unstage", what="unstage", path=str(new))
    assert not new.exists()
    with pytest.raises(RemoteError, match="no directory of this helper"):
        helper.call("unstage", what="unstage", path=str(kept))
    helper.close()
    assert {path.name for path in images.iterdir()} == others


def test_requests_that_are_wrong_do_not_end_it(helper: Connection) -> None:
    with pytest.raises(RemoteError, match="unknown request nonsense"):
        helper.call("nonsense", what="ask")
    with pytest.raises(RemoteError, match="TypeError"):
        helper.call("stat", what="ask", nothing=1)
    with pytest.raises(RemoteError, match="no-such-program: No such file"):
        helper.call("run", what="run", argv=["no-such-program"], stdin="", limit_s=5)
    with pytest.raises(RemoteError, match="did not end within 0 s"):
        helper.call("run", what="run", argv=["sleep", "60"], stdin="", limit_s=0.1)
    helper._send({"id": 1})
    helper._out.append(b"no json\n")
    assert helper.call("list", what="ask", directory="/dev/fd") is not None


def test_slow_request_delays_no_other(helper: Connection, virsh: Virsh) -> None:
    slow = threading.Thread(
        target=lambda: helper.call("run", what="run", argv=["sleep", "2"], stdin="", limit_s=5), daemon=True
    )
    slow.start()
    begun = time.monotonic()
    assert helper.call("run", what="run", argv=["true"], stdin="", limit_s=5)["status"] == 0
    assert time.monotonic() - begun < 1.5
    slow.join()  # longer than the line may be silent: the beat goes on


def test_copy_that_was_not_destroyed_goes_with_the_line(helper: Connection, virsh: Virsh) -> None:
    for uuid in (UUID, UUID.replace("c", "d")):
        helper.call("claim_copy", what="watch", uuid=uuid)
    helper.call("release_copy", what="watch", uuid=UUID)
    helper.close()
    assert [line for line in virsh.asked() if " destroy " in line] == [
        f"--quiet --connect qemu:///system destroy --domain {UUID.replace('c', 'd')}"
    ]


def test_guest_that_is_frozen_for_too_long_is_thawed(helper: Connection, virsh: Virsh) -> None:
    virsh.answer("guest-fsfreeze-thaw", '{"return": 2}')
    helper.call("watch_thaw", what="watch", uuid=UUID, limit_s=0.2)
    wait_for(lambda: UUID in helper.thawed, "the thaw", timeout_s=5)
    assert virsh.count("guest-fsfreeze-thaw") == 1
    assert f"--domain {UUID}" in virsh.asked()[0]
    assert helper.call("unwatch", what="unwatch", uuid=UUID) is True


def test_guest_that_vbackup_has_thawed_is_left_alone(helper: Connection, virsh: Virsh) -> None:
    helper.call("watch_thaw", what="watch", uuid=UUID, limit_s=0.3)
    assert helper.call("unwatch", what="unwatch", uuid=UUID) is False
    helper.call("run", what="wait", argv=["sleep", "0.6"], stdin="", limit_s=5)
    assert virsh.asked() == []
    assert helper.call("unwatch", what="unwatch", uuid=UUID) is False


def test_silence_thaws_and_a_freeze_that_arrives_late_too(
    helper: Connection, virsh: Virsh, fall_silent: Callable[[], None]
) -> None:
    virsh.answer("guest-fsfreeze-thaw", '{"return": 0}')  # the freeze is still on its way
    helper.call("watch_thaw", what="watch", uuid=UUID, limit_s=60)
    fall_silent()
    wait_for(lambda: virsh.count("guest-fsfreeze-thaw") >= 2, "two attempts", timeout_s=5)
    virsh.answer("guest-fsfreeze-thaw", '{"return": 1}')
    count = virsh.count("guest-fsfreeze-thaw")
    wait_for(lambda: helper._process.poll() is not None, "the end of the helper", timeout_s=10)
    assert virsh.count("guest-fsfreeze-thaw") <= count + 1


def test_agent_that_does_not_answer_is_asked_until_it_does(helper: Connection, virsh: Virsh) -> None:
    virsh.answer("domstate", "running\n")  # and no answer to a thaw
    helper.call("watch_thaw", what="watch", uuid=UUID, limit_s=0.1)
    wait_for(lambda: virsh.count("guest-fsfreeze-thaw") >= 2, "two attempts", timeout_s=5)
    virsh.answer("guest-fsfreeze-thaw", '{"return": 1}')
    wait_for(lambda: UUID in helper.thawed, "the thaw", timeout_s=5)


def test_loss_ends_jobs_nodes_and_descriptors_of_this_backup_only(helper: Connection, virsh: Virsh) -> None:
    jobs = [{"id": JOB, "status": "running"}, {"id": "libvirt-1", "status": "running"}]
    virsh.answer("query-jobs", json.dumps({"return": jobs}))
    nodes = [{"node-name": NODE}, {"node-name": "libvirt-1-format"}]
    virsh.answer("query-named-block-nodes", json.dumps({"return": nodes}))
    sets = [{"fdset-id": 3, "fds": [{"fd": 9, "opaque": f"{NODE} 1:2"}]}, {"fdset-id": 4, "fds": [{"fd": 10}]}]
    virsh.answer("query-fdsets", json.dumps({"return": sets}))
    for one in ("job-cancel", "blockdev-del", "remove-fd"):
        virsh.answer(one, '{"return": {}}')
    helper.call("guard", what="guard", uuid=UUID, jobs="x", nodes="x")  # that operation has failed
    helper.call("guard", what="guard", uuid=UUID, jobs=JOB[:-3], nodes=NODE[:-3], bitmaps=[["node", "working"]])
    assert helper._process.stdin is not None
    helper._process.stdin.close()  # as if this process had been killed
    wait_for(lambda: virsh.count("blockdev-del") > 0 or virsh.count("job-cancel") > 0, "the cancelling", timeout_s=10)
    virsh.answer("query-jobs", json.dumps({"return": [{"id": JOB, "status": "concluded"}]}))
    wait_for(lambda: virsh.count("job-dismiss") > 0, "the dismissing", timeout_s=10)
    virsh.answer("query-jobs", '{"return": []}')
    wait_for(lambda: virsh.count("block-dirty-bitmap-remove") > 0, "the end", timeout_s=10)
    assert virsh.count('{"node": "node", "name": "working"}') == 1
    assert not any("libvirt-1" in line for line in virsh.asked())
    assert virsh.count('"fdset-id": 3') == 1
    assert virsh.count('"fdset-id": 4') == 0


def test_loss_closes_sockets_that_no_node_took_and_removes_the_keys(
    helper: Connection, virsh: Virsh, tmp_path: Path
) -> None:
    for one in ("getfd", "object-del"):
        virsh.answer(one, '{"return": {}}')
    objects = [{"name": f"{NODE[:-3]}target-tls"}, {"name": "libvirt-1-tls0"}]
    virsh.answer("qom-list", json.dumps({"return": objects}))
    helper.call("guard", what="guard", uuid=UUID, jobs=JOB[:-3], nodes=NODE[:-3])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "nbd"))
        listener.listen()
        request = {"uuid": UUID, "name": NODE, "path": str(tmp_path / "nbd")}
        call = threading.Thread(target=lambda: helper.call("pass_nbd", what="connect", **request))
        call.start()
        with listener.accept()[0] as server:
            server.sendall(b"NBDMAGIC")
            call.join()
    assert helper._process.stdin is not None
    helper._process.stdin.close()
    wait_for(lambda: helper._process.poll() is not None, "the end of the helper", timeout_s=10)
    asked = [json.loads(line[line.index("{") :]) for line in virsh.asked()]
    assert [one["arguments"] for one in asked if one["execute"] == "closefd"] == [{"fdname": NODE}]
    assert [one["arguments"] for one in asked if one["execute"] == "object-del"] == [{"id": f"{NODE[:-3]}target-tls"}]


#: A helper on whose host the storage of whatever is looked at hangs.
HANGING = """\
import os, time
open(0, "rb", buffering=0, closefd=False).readline()
from vbackup.remote import helper
helper.os.stat = lambda path: time.sleep(600)
helper.main()
"""


def test_storage_that_hangs_does_not_keep_it_from_thawing(virsh: Virsh, impatient: None) -> None:
    virsh.answer("guest-fsfreeze-thaw", '{"return": 1}')
    made = begin([sys.executable, "-c", HANGING])
    try:
        made.call("watch_thaw", what="watch", uuid=UUID, limit_s=0.2)
        with pytest.raises(RemoteError, match="no answer within 0 s"):
            made.call("stat", what="look", path="/mnt/dead", timeout_s=0.1)
        wait_for(lambda: UUID in made.thawed, "the thaw", timeout_s=5)
    finally:
        made.close()


def test_fault_of_the_helper_itself_thaws_and_cleans_up(
    helper: Connection, virsh: Virsh, fall_silent: Callable[[], None]
) -> None:
    virsh.answer("guest-fsfreeze-thaw", '{"return": 1}')
    pid = helper.call("start", what="start", argv=["sleep", "600"], cwd="/", listen="")
    helper.call("watch_thaw", what="watch", uuid=UUID, limit_s=600)
    helper._out.append(b"5\n")  # no object: whatever it is that nobody has thought of
    helper._wake()
    wait_for(lambda: helper._process.poll() is not None, "the end of the helper", timeout_s=10)
    assert virsh.count("guest-fsfreeze-thaw") == 1
    assert not Path(f"/proc/{pid}").exists() or _is_zombie(pid)


def test_farewell_with_nothing_left_asks_nobody(helper: Connection, virsh: Virsh) -> None:
    helper.call("guard", what="guard", uuid=UUID, jobs="x", nodes="x")
    helper.call("unguard", what="unguard", uuid=UUID)
    begun = time.monotonic()
    helper.close()
    assert time.monotonic() - begun < 2
    assert virsh.asked() == []
    with pytest.raises(LinkLostError, match="is closed"):
        helper.call("list", what="list", directory="/")


def test_socket_is_handed_over_when_the_server_has_greeted(helper: Connection, virsh: Virsh, tmp_path: Path) -> None:
    path = str(Path("/tmp", f"vbackup-test-{os.getpid()}.sock"))
    virsh.answer("getfd", '{"return": {}}')
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        helper.call("forwarded", what="use", path=path)
        with pytest.raises(RemoteError, match="did not greet within 1 s"):
            helper.call("pass_nbd", what="connect", uuid=UUID, name="x", path=path)
        connected = listener.accept()[0]
        connected.close()
        assert virsh.asked() == []
        call = threading.Thread(
            target=lambda: helper.call("pass_nbd", what="connect", uuid=UUID, name="vda-link", path=path)
        )
        call.start()
        with listener.accept()[0] as server:
            server.sendall(b"NBDMAGICIHAVEOPT")
            call.join()
    [line] = virsh.asked()
    assert "--pass-fds" in line
    assert json.loads(line[line.index("{") :]) == {"execute": "getfd", "arguments": {"fdname": "vda-link"}}
    helper.close()
    assert not Path(path).exists()
    with pytest.raises(LinkLostError):
        helper.call("list", what="list", directory="/")


def test_shared_socket_takes_the_place_of_a_dead_one(helper: Connection, tmp_path: Path) -> None:
    """A shortcut leads sshd to the directory, whatever its name is; with the helper, the socket goes."""
    place = tmp_path / "a place"
    place.mkdir()
    shortcut = f"{helper.call('directory', what='ask')}/1"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place / "live.sock"))
    helper.call("shortcut", what="lead", path=shortcut, directory=str(place), name="live.sock")
    assert list(place.iterdir()) == []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{shortcut}/live.sock")
        helper.call("forwarded", what="take", path=f"{shortcut}/live.sock", uid=os.geteuid(), gid=os.getegid())
        assert (place / "live.sock").stat().st_mode & 0o777 == 0o600
        helper.close()
    assert list(place.iterdir()) == []
    assert not Path(shortcut).is_symlink()


def test_shared_socket_replaces_nothing_else(helper: Connection, tmp_path: Path) -> None:
    (tmp_path / "live.sock").touch()
    with pytest.raises(RemoteError, match="File exists"):
        helper.call("shortcut", what="lead", path=str(tmp_path / "1"), directory=str(tmp_path), name="live.sock")
    assert (tmp_path / "live.sock").exists()


def test_started_program_ends_with_the_helper(helper: Connection) -> None:
    pid = helper.call("start", what="start", argv=["sleep", "600"], cwd="/", listen="")
    assert helper.call("wait", what="wait", pid=pid, limit_s=0.05) is None
    helper._process.kill()
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid), "the end of the program", timeout_s=5)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # it is gone since it was looked for
        return True


def test_how_a_program_ended(helper: Connection) -> None:
    pid = helper.call("start", what="start", argv=["sh", "-c", "echo why >&2; exit 3"], cwd="/", listen="")
    assert helper.call("wait", what="wait", pid=pid, limit_s=5) == {"status": 3, "stderr": "why\n"}
    pid = helper.call("start", what="start", argv=["sleep", "600"], cwd="/", listen="")
    helper.call("kill", what="kill", pid=pid, signum=15)
    assert helper.call("wait", what="wait", pid=pid, limit_s=5)["status"] == -15


def test_imported_it_does_nothing() -> None:
    argv = [sys.executable, "-c", "import vbackup.remote.helper"]
    assert subprocess.run(argv, capture_output=True, check=True).stdout == b""


def test_loss_ends_the_exports_of_a_session_and_stops_the_server(
    helper: Connection, virsh: Virsh, tmp_path: Path
) -> None:
    exports = [{"id": f"{NODE}-1", "type": "nbd"}, {"id": "libvirt-1", "type": "nbd"}]
    virsh.answer("query-block-exports", json.dumps({"return": exports}))
    for one in ("block-export-del", "nbd-server-stop"):
        virsh.answer(one, '{"return": {}}')
    for query in ("query-jobs", "query-named-block-nodes", "query-fdsets", "qom-list"):
        virsh.answer(query, '{"return": []}')
    path = str(Path("/tmp", f"vbackup-test-{os.getpid()}.nbd"))
    helper.call("guard", what="guard", uuid=UUID, jobs=JOB[:-3], nodes=NODE[:-3], session="-t", server=path)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen()
        client.connect(path)
        accepted = server.accept()[0]
        Path(path).unlink()  # the kernel knows it by this name still
        assert sorted(helper.call("socket_states", what="look", path=path)) == ["01", "03"]
        assert helper._process.stdin is not None
        helper._process.stdin.close()
        wait_for(lambda: virsh.count("block-export-del") > 0, "the end of the export", timeout_s=10)
        assert virsh.count('"id": "libvirt-1"') == 0
        virsh.answer("query-block-exports", '{"return": []}')
        wait_for(lambda: virsh.count("qom-list") > 0, "all but the server", timeout_s=10)
        time.sleep(0.5)
        assert virsh.count("nbd-server-stop") == 0, "QEMU would wait for the client for ever"
        accepted.close()
        wait_for(lambda: virsh.count("nbd-server-stop") == 1, "the end of the server", timeout_s=10)


def test_sockets_for_a_server(helper: Connection, virsh: Virsh) -> None:
    virsh.answer("getfd", '{"return": {}}')
    path = Path(helper.call("listen", what="listen", uuid=UUID, name="x-nbd"))
    assert path.stat().st_mode & 0o7777 == 0o600
    assert virsh.count('"fdname": "x-nbd"') == 1
    helper.close()
    assert not path.parent.exists()


def test_mark_that_a_domain_has_to_stay_off(
    virsh: Virsh, impatient: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = connection.source().replace('MARKS = "/run/vbackup/offline"', f'MARKS = "{tmp_path}/run/offline"')
    monkeypatch.setattr(connection, "source", lambda: source)
    one, other = (begin(["sh", "-c", command.bootstrap()]) for _ in range(2))
    path = tmp_path / "run" / "offline" / UUID
    unset = {"is_set": False, "other": None, "session": None}
    assert one.call("mark", what="mark", uuid=UUID, work="backup") == {**unset, "is_set": True}
    assert one.call("mark", what="mark", uuid=UUID, work="backup") == unset
    mark = json.loads(path.read_text())
    assert (mark["work"], Process.of(mark["pid"])) == (
        "backup",
        Process(mark["pid"], mark["start_ticks"], mark["boot_id"]),
    )
    assert other.call("mark", what="mark", uuid=UUID, work="restore") == {**unset, "other": mark["pid"]}
    one.call("unmark", what="mark", uuid=UUID)
    assert not path.exists()
    path.write_text("{")  # of no use to anybody
    assert other.call("mark", what="mark", uuid=UUID, work="restore")["is_set"]
    other.close()
    assert not path.exists()
    one.close()


def test_lock_on_the_marks_that_another_process_keeps_delays_no_end(
    virsh: Virsh, impatient: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = connection.source()
    for old, new in (
        ('MARKS = "/run/vbackup/offline"', f'MARKS = "{tmp_path}/run/offline"'),
        ("MARKS_S = 3.0", "MARKS_S = 0.2"),
    ):
        source = source.replace(old, new)
    monkeypatch.setattr(connection, "source", lambda: source)
    helper = begin(["sh", "-c", command.bootstrap()])
    helper.call("mark", what="mark", uuid=UUID, work="backup")
    pid = helper.call("start", what="start", argv=["sleep", "600"], cwd="/", listen="")
    fd = os.open(tmp_path / "run" / "offline", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(RemoteError, match="offline: another process keeps it locked"):
            helper.call("mark", what="mark", uuid=UUID.replace("c", "d"), work="backup", timeout_s=5)
        helper.close()
        assert helper._process.returncode == 0  # it was not killed after END_S
        assert Process.of(pid) is None
    finally:
        os.close(fd)


def test_mark_of_a_session_counts_as_long_as_its_daemon_lives(
    virsh: Virsh, impatient: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A helper that ends lets others wait for the daemon, and leaves the mark alone that they set then."""
    source = connection.source().replace('MARKS = "/run/vbackup/offline"', f'MARKS = "{tmp_path}/run/offline"')
    monkeypatch.setattr(connection, "source", lambda: source)
    one, other = (begin(["sh", "-c", command.bootstrap()]) for _ in range(2))
    path, session = tmp_path / "run" / "offline" / UUID, "20261130T120000Z-abcdef"
    stays = "trap 'sleep 0.5; exit' TERM; while :; do sleep 0.05; done"
    pid = one.call("start", what="start", argv=["sh", "-c", stays], cwd="/", listen="")
    started = one.call("identity", what="look", pid=pid)["start_ticks"]
    assert one.call("mark", what="mark", uuid=UUID, work="session", pid=pid, session=session)["is_set"]
    refused = other.call("mark", what="mark", uuid=UUID, work="backup")
    assert refused == {"is_set": False, "other": pid, "session": session}
    assert not other.call("outlived", what="wait", pid=pid, start_ticks=started, limit_s=0)
    assert one._process.stdin is not None
    one._process.stdin.close()
    wait_for(lambda: "is_ending" in path.read_text(), "the helper's end")
    assert other.call("mark", what="mark", uuid=UUID, work="backup")["is_set"], "it waits"
    assert other.call("outlived", what="wait", pid=pid, start_ticks=started, limit_s=0)
    assert json.loads(path.read_text())["work"] == "backup"
    one._process.wait(10)
    assert json.loads(path.read_text())["work"] == "backup"
    one.close()
    other.close()


def test_process_of_another_helper_is_signalled_if_it_is_still_that_one(helper: Connection) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        found = Process.of(process.pid)
        assert found is not None
        identity = {"pid": found.pid, "start_ticks": found.start_ticks}
        helper.call("kill_process", what="kill", **{**identity, "start_ticks": 1}, signum=9)
        assert helper.call("outlived", what="wait", **{**identity, "start_ticks": 1}, limit_s=0)
        assert process.poll() is None
        helper.call("kill_process", what="kill", **identity, signum=9)
        assert helper.call("outlived", what="wait", **identity, limit_s=10), "also as a zombie"
