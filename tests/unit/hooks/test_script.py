"""The hook script as libvirt runs it, with arguments and XML: no error in it stops the start of a guest."""

from __future__ import annotations

import ast
import fcntl
import json
import os
import resource
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.builders import UUID, Recorder
from vbackup.hooks import events, half_restored, install, marks
from vbackup.hooks.events import Operation

OTHER_UUID = "f0000000-0000-4000-8000-000000000002"
XML = f"<domain type='qemu' id='1'>\n  <name>web</name>\n  <uuid>{UUID}</uuid>\n</domain>\n".encode()

#: The arguments that libvirt runs a hook with (measured with libvirt 9.0).
CALLS = [
    ("prepare", "begin", "-"),
    ("start", "begin", "-"),
    ("started", "begin", "-"),
    ("stopped", "end", "-"),
    ("release", "end", "-"),
    ("reconnect", "begin", "-"),
    ("restore", "begin", "-"),
    ("migrate", "begin", "-"),
]


@dataclass(frozen=True)
class Hook:
    """The script, with its files in a directory of the test."""

    path: Path

    def argv(self, *arguments: str | bytes) -> list[str | bytes]:
        return [str(self.path), *arguments]

    def call(
        self, *arguments: str | bytes, xml: bytes = XML, status: int = 0, silent: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            self.argv(*arguments), input=xml, capture_output=True, check=False, timeout=30, env={"LC_ALL": "C"}
        )
        assert (done.returncode, done.stdout) == (status, b""), done
        assert (done.stderr == b"") == silent, done
        return done

    @property
    def log(self) -> Path:
        return events.DIRECTORY / f"{UUID}.log"


@pytest.fixture
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hook:
    monkeypatch.setattr(marks, "DIRECTORY", tmp_path / "run" / "offline")
    monkeypatch.setattr(events, "DIRECTORY", tmp_path / "var" / "events")
    monkeypatch.setattr(half_restored, "DIRECTORY", tmp_path / "lib" / "half-restored")
    path = tmp_path / "qemu"
    path.write_text(
        replaced(
            replaced(install.SCRIPT.read_text(), '"/run/vbackup/offline"', f'"{marks.DIRECTORY}"'),
            '"/var/lib/vbackup/events"',
            f'"{events.DIRECTORY}"',
        )
    )
    path.write_text(replaced(path.read_text(), '"/var/lib/vbackup/half-restored"', f'"{half_restored.DIRECTORY}"'))
    path.chmod(0o755)
    return Hook(path)


def replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def change(hook: Hook, old: str, new: str) -> None:
    """Change the text of the script."""
    hook.path.write_text(replaced(hook.path.read_text(), old, new))


def operations() -> list[Operation]:
    return [event.operation for event in events.events(UUID)]


# the script and the package


def test_script_and_package_mean_the_same_files() -> None:
    text = install.SCRIPT.read_text()
    assert f'\nMARKS_DIRECTORY = "{marks.DIRECTORY}"\n' in text
    assert f'\nEVENTS_DIRECTORY = "{events.DIRECTORY}"\n' in text
    assert f'\nHALF_RESTORED_DIRECTORY = "{half_restored.DIRECTORY}"\n' in text
    assert f"\nHALF_RESTORED_LIMIT_BYTES = {half_restored.LIMIT_BYTES // 1024} * 1024\n" in text


def test_script_needs_only_the_system_s_python() -> None:
    text = install.SCRIPT.read_text()
    assert text.startswith("#!/usr/bin/python3 -IS\n")
    tree = ast.walk(ast.parse(text))
    imported = {name.name for node in tree if isinstance(node, ast.Import) for name in node.names}
    assert imported == {"contextlib", "fcntl", "json", "os", "pyexpat", "signal", "stat", "sys", "time"}
    froms = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    assert froms == {"__future__"}


def test_half_a_python_stops_no_guest(hook: Hook) -> None:
    change(hook, "import pyexpat", "import pyexpat_of_another_package")
    assert b"pyexpat_of_another_package" in hook.call("web", "prepare", "begin", "-", silent=False).stderr


def test_call_takes_less_than_100_ms_of_the_processor(hook: Hook) -> None:
    """How long that is on the clock depends on the load of the machine; the script waits for nothing."""

    def processor_s() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    with marks.offline_mark(OTHER_UUID):
        begun_s, calls = processor_s(), 10
        for _ in range(calls):
            hook.call("web", "prepare", "begin", "-")
        assert (processor_s() - begun_s) / calls < 0.1


# events


def test_calls_become_events(hook: Hook) -> None:
    before = time.time()
    for call in CALLS:
        hook.call("web", *call)
    found = events.events(UUID)
    assert [(event.operation.value, event.sub, event.extra) for event in found] == CALLS
    assert {event.domain_name for event in found} == {"web"}
    assert {event.refused for event in found} == {False}
    process = marks.Process.of(os.getpid())
    assert process is not None
    assert {event.boot_id for event in found} == {process.boot_id}
    times = [event.time.timestamp() for event in found]
    assert before - 1 < times[0]
    assert times == sorted(times)
    assert times[-1] < time.time() + 1


def test_files_are_for_root_only(hook: Hook, tmp_path: Path) -> None:
    hook.call("web", "start", "begin", "-")
    found = {path: path.stat().st_mode & 0o777 for path in (tmp_path / "var").rglob("*")}
    assert found == {events.DIRECTORY: 0o700, hook.log: 0o600}
    assert (tmp_path / "var").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("arguments", [(), ("web",), ("web", "start"), ("web", "start", "begin")], ids=len)
def test_missing_arguments_stop_no_guest(hook: Hook, arguments: Sequence[str]) -> None:
    hook.call(*arguments)
    assert len(events.events(UUID)) == (1 if len(arguments) > 1 else 0)


def test_operation_of_a_newer_libvirt_is_no_event(hook: Hook) -> None:
    hook.call("web", "teleport", "begin", "-")
    hook.call("web", "../../x", "begin", "-")
    assert events.events(UUID) == ()


@pytest.mark.parametrize(
    ("name", "read"),
    [("häuser".encode(), "häuser"), (b"\xff\xfe", "\udcff\udcfe"), (b"a\nb", "a\nb"), (b"x" * 1000, "x" * 256)],
    ids=ascii,
)
def test_odd_names_are_kept(hook: Hook, name: bytes, read: str) -> None:
    hook.call(name, "start", "begin", b"\xff" * 1000)
    (event,) = events.events(UUID)
    assert event.domain_name.encode(errors="surrogateescape") == read.encode(errors="surrogateescape")
    assert len(event.extra) == 256
    assert hook.log.read_bytes().count(b"\n") == 1


NO_UUID = [
    b"",
    b"<",
    b"web",
    b"\xff\xfe\x00",
    b"<domain><uuid>\xff</uuid></domain>",
    b"<domain><uuid></uuid></domain>",
    b"<domain><uuid>../../../etc/passwd</uuid></domain>",
    f"<domain><uuid>{UUID}".encode(),
    f"<domain><uuid>{UUID}0</uuid></domain>".encode(),
    f"<domain><metadata><uuid>{UUID}</uuid></metadata></domain>".encode(),
    f"<network><uuid>{UUID}</uuid></network>".encode(),
    b"<domain>" + b" " * (8 << 20),
    b"<a>" * (1 << 20),
    f'<!DOCTYPE d [<!ENTITY u "{UUID}">]><domain><uuid>&u;</uuid></domain>'.encode(),
    f"<!DOCTYPE d><domain><uuid>{UUID}</uuid></domain>".encode(),
    b'<!DOCTYPE d [<!ENTITY a "haha"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]><domain><name>&b;</name></domain>',
    b'<!DOCTYPE d [<!ENTITY f SYSTEM "file:///etc/passwd">]><domain><uuid>&f;</uuid></domain>',
]


@pytest.mark.parametrize("xml", NO_UUID, ids=lambda xml: ascii(xml[:30]))
def test_xml_without_a_domain_s_uuid_stops_no_guest(hook: Hook, xml: bytes) -> None:
    with marks.offline_mark(UUID):
        hook.call("web", "prepare", "begin", "-", xml=xml, silent=False)
    assert not events.DIRECTORY.exists()


@pytest.mark.parametrize(
    "xml",
    [
        XML,
        XML.replace(UUID.encode(), b" \n" + UUID.upper().encode() + b"\n"),
        XML.replace(b"</domain>", b"<metadata>" + b"<x/>" * (1 << 20) + b"</metadata></domain>"),
        XML.replace(b"<name>web</name>", b"<name>&lt;uuid&gt;" + OTHER_UUID.encode() + b"&lt;/uuid&gt;</name>"),
        b"<?xml version='1.0'?><!-- <uuid>x</uuid> -->" + XML,
    ],
    ids=["plain", "spaces", "huge", "escaped", "comment"],
)
def test_uuid_is_found(hook: Hook, xml: bytes) -> None:
    hook.call("web", "start", "begin", "-", xml=xml)
    assert operations() == [Operation.START]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_stop_no_guest(hook: Hook, closed: str) -> None:
    script = f'exec "$0" web prepare begin - {closed}'
    done = subprocess.run(["sh", "-c", script, str(hook.path)], input=XML, check=False, timeout=30)
    assert done.returncode == 0


def test_input_that_does_not_end_stops_no_guest(hook: Hook) -> None:
    change(hook, "VERDICT_DEADLINE_S = 2.0", "VERDICT_DEADLINE_S = 0.2")
    with subprocess.Popen(hook.argv("web", "prepare", "begin", "-"), stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(XML)
        process.stdin.flush()
        assert process.wait(timeout=30) == 0


# the log


def make_directory(hook: Hook) -> None:
    hook.log.mkdir(parents=True)


def make_fifo(hook: Hook) -> None:
    hook.log.parent.mkdir(parents=True)
    os.mkfifo(hook.log)


def make_link(hook: Hook) -> None:
    hook.log.parent.mkdir(parents=True)
    hook.log.symlink_to(hook.path)


def make_file_of_directory(_hook: Hook) -> None:
    events.DIRECTORY.parent.mkdir()
    events.DIRECTORY.touch()


def make_file_of_parent(_hook: Hook) -> None:
    events.DIRECTORY.parent.touch()


@pytest.mark.parametrize("make", [make_directory, make_fifo, make_link, make_file_of_directory, make_file_of_parent])
def test_log_that_cannot_be_written_stops_no_guest(hook: Hook, make: object) -> None:
    assert callable(make)
    make(hook)
    script = hook.path.read_bytes()
    assert b"does not affect the domain" in hook.call("web", "prepare", "begin", "-", silent=False).stderr
    assert hook.path.read_bytes() == script
    with marks.offline_mark(UUID):
        hook.call("web", "prepare", "begin", "-", status=1, silent=False)


def fill(log: Path, size_bytes: int) -> bytes:
    """Fill the log with as many events as fit, and return its content."""
    line = json.dumps(
        {
            "time": 1.5,
            "operation": "start",
            "sub": "begin",
            "extra": "-",
            "name": "old",
            "boot_id": "x",
            "refused": False,
        }
    ).encode()
    text = (line + b"\n") * (size_bytes // (len(line) + 1))
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(text)
    return text


def test_log_keeps_the_newest(hook: Hook) -> None:
    full = fill(hook.log, 64 * 1024)
    hook.call("new", "start", "begin", "-")
    text = hook.log.read_bytes()
    assert 24 * 1024 < len(text) <= 64 * 1024
    assert text.count(b"\n") == len(events.events(UUID))
    assert full.startswith(text[: text.rindex(b"\n", 0, -1) + 1])
    assert [event.domain_name for event in events.events(UUID)][-2:] == ["old", "new"]
    assert hook.log.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in events.DIRECTORY.iterdir()] == [hook.log.name]


@pytest.mark.parametrize("text", [b"x" * (1 << 20), b"\n" * (1 << 20), bytes(1 << 20)], ids=["text", "lines", "zeroes"])
def test_log_of_somebody_else_becomes_ours(hook: Hook, text: bytes) -> None:
    events.DIRECTORY.mkdir(parents=True)
    hook.log.write_bytes(text)
    hook.call("web", "start", "begin", "-")
    assert operations() == [Operation.START]
    assert hook.log.stat().st_size <= 64 * 1024


def test_line_that_was_cut_off_takes_no_other_with_it(hook: Hook) -> None:
    hook.call("web", "start", "begin", "-")
    whole = hook.log.read_bytes()
    hook.log.write_bytes(whole + whole[:40])
    hook.call("web", "started", "begin", "-")
    assert operations() == [Operation.START, Operation.STARTED]


@pytest.mark.parametrize("size_bytes", [0, 63 * 1024], ids=["new", "full"])
def test_calls_at_once_are_all_kept(hook: Hook, size_bytes: int) -> None:
    fill(hook.log, size_bytes)
    count = 12
    running = [
        subprocess.Popen(hook.argv(f"number-{number}", "started", "begin", "-"), stdin=subprocess.PIPE)
        for number in range(count)
    ]
    for one in running:
        assert one.stdin is not None
        one.stdin.write(XML)
    for one in running:
        one.communicate(timeout=60)
        assert one.returncode == 0
    found = {event.domain_name for event in events.events(UUID)} - {"old"}
    assert found == {f"number-{number}" for number in range(count)}
    assert hook.log.read_bytes().count(b"\n") == len(events.events(UUID))


@contextmanager
def held(directory: Path) -> Iterator[None]:
    directory.mkdir(parents=True)
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def test_log_that_somebody_holds_is_not_waited_for(hook: Hook) -> None:
    with held(events.DIRECTORY), marks.offline_mark(OTHER_UUID):
        begun = time.monotonic()
        hook.call("web", "prepare", "begin", "-")
        hook.call(
            "web", "prepare", "begin", "-", xml=XML.replace(UUID.encode(), OTHER_UUID.encode()), status=1, silent=False
        )
        assert time.monotonic() - begun < 10
    assert events.events(UUID) == ()


def test_logs_of_domains_that_are_gone_give_way(hook: Hook) -> None:
    change(hook, "MOST_LOGS = 1000", "MOST_LOGS = 3")
    uuids = [f"f0000000-0000-4000-8000-00000000000{number}" for number in range(5)]
    for number, uuid in enumerate(uuids):
        hook.call("web", "start", "begin", "-", xml=XML.replace(UUID.encode(), uuid.encode()))
        os.utime(events.DIRECTORY / f"{uuid}.log", (number, number))
    assert {path.name for path in events.DIRECTORY.iterdir()} == {f"{uuid}.log" for uuid in uuids[2:]}


# marks


def test_start_of_a_marked_domain_is_refused_in_one_sentence(hook: Hook) -> None:
    with marks.offline_mark(UUID):
        said = hook.call("web", "prepare", "begin", "-", status=1, silent=False).stderr.decode()
    assert said.startswith("vbackup has the disks of domain 'web' open in an offline backup (process ")
    assert f"(process {os.getpid()}, since 20" in said
    assert said.endswith("; start the domain when the backup has ended.\n")
    assert said.count("\n") == 1
    hook.call("web", "prepare", "begin", "-")
    assert [event.refused for event in events.events(UUID)] == [True, False]


@pytest.mark.parametrize("call", CALLS[1:], ids=lambda call: call[0])
def test_only_a_start_is_refused(hook: Hook, call: Sequence[str]) -> None:
    with marks.offline_mark(UUID):
        hook.call("web", *call)
        hook.call("web", "prepare", "end", "-")


def test_other_domain_is_not_refused(hook: Hook) -> None:
    with marks.offline_mark(OTHER_UUID):
        hook.call("web", "prepare", "begin", "-")


def test_refusal_of_an_odd_name_is_one_line(hook: Hook) -> None:
    with marks.offline_mark(UUID):
        said = hook.call(b"a\n\x1b[31m\xff\xc3\xa4", "prepare", "begin", "-", status=1, silent=False).stderr
    assert said.isascii()
    assert said.count(b"\n") == 1
    assert b"\x1b" not in said


def this_process() -> marks.Process:
    process = marks.Process.of(os.getpid())
    assert process is not None
    return process


def mark_text(**changed: object) -> str:
    """The mark of this process, with some members changed."""
    this = this_process()
    members = {"pid": this.pid, "start_ticks": this.start_ticks, "boot_id": this.boot_id, "since": "x", **changed}
    return json.dumps(members)


def ended_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


STALE = {
    "ended": lambda: mark_text(pid=ended_process()),
    "pid used again": lambda: mark_text(start_ticks=this_process().start_ticks - 1),
    "boot before": lambda: mark_text(boot_id="00000000-0000-4000-8000-000000000000"),
    "no start": lambda: mark_text(start_ticks=None),
    "no pid": lambda: mark_text(pid=None),
    "odd pid": lambda: mark_text(pid="../../self"),
    "negative pid": lambda: mark_text(pid=-1),
    "empty": lambda: "",
    "torn": lambda: mark_text()[:-5],
    "list": lambda: "[]",
    "deep": lambda: "[" * 4000,
    "long": lambda: mark_text(since="x" * 5000),
    "number": lambda: '{"pid": 1e999}',
}


@pytest.mark.parametrize("kind", STALE)
def test_mark_without_its_process_stops_no_guest(hook: Hook, kind: str) -> None:
    marks.DIRECTORY.mkdir(parents=True)
    path = marks.DIRECTORY / UUID
    path.write_text(mark_text())
    hook.call("web", "prepare", "begin", "-", status=1, silent=False)
    path.write_text(STALE[kind]())
    done = subprocess.run(hook.argv("web", "prepare", "begin", "-"), input=XML, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"")
    assert [event.refused for event in events.events(UUID)] == [True, False]
    assert marks.live_mark(UUID) is None


def test_mark_of_a_process_that_nobody_has_waited_for_stops_no_guest(hook: Hook) -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    try:
        found = marks.Process.of(process.pid)
        assert found is not None
        marks.DIRECTORY.mkdir(parents=True)
        (marks.DIRECTORY / UUID).write_text(mark_text(pid=found.pid, start_ticks=found.start_ticks))
        hook.call("web", "prepare", "begin", "-", status=1, silent=False)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        hook.call("web", "prepare", "begin", "-")
    finally:
        process.communicate()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_mark_that_is_no_file_stops_no_guest(hook: Hook, make: object) -> None:
    assert callable(make)
    marks.DIRECTORY.mkdir(parents=True)
    make(marks.DIRECTORY / UUID)
    done = subprocess.run(
        hook.argv("web", "prepare", "begin", "-"), input=XML, capture_output=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout) == (0, b"")
    assert [event.refused for event in events.events(UUID)] == [False]


def test_start_during_a_restore_in_place_is_refused_in_one_sentence(hook: Hook) -> None:
    with marks.offline_mark(UUID, marks.Work.RESTORE):
        said = hook.call("web", "prepare", "begin", "-", status=1, silent=False).stderr.decode()
    assert said.startswith(f"vbackup is restoring the disks of domain 'web' in place (process {os.getpid()}, since 20")
    assert said.endswith("; start the domain when the restore has ended.\n")
    hook.call("web", "prepare", "begin", "-")


def test_start_while_a_pull_session_serves_the_disks_is_refused_in_one_sentence(hook: Hook) -> None:
    this = marks.Process.of(os.getpid())
    assert this is not None
    with marks.offline_mark(UUID):
        marks.hand_over(UUID, this, session="20261129T101500Z-0a1b2c")
        said = hook.call("web", "prepare", "begin", "-", status=1, silent=False).stderr.decode()
    assert said.startswith("Pull session 20261129T101500Z-0a1b2c of vbackup has the disks of domain 'web' open")
    assert said.endswith("; commit or abort it, then start the domain.\n")
    assert said.count("\n") == 1
    hook.call("web", "prepare", "begin", "-")


# what a restore in place has left half done


def half_restore(command: str = "vbackup restore web --in-place -r /srv") -> Path:
    half_restored.DIRECTORY.parent.mkdir(exist_ok=True)
    half_restored.begin(UUID, ["vda", "vdb"], domain="web", command=command, reporter=Recorder())
    return half_restored.DIRECTORY / UUID


def test_half_restored_domain_is_refused_until_the_restore_has_ended(hook: Hook) -> None:
    path = half_restore()
    said = hook.call("web", "prepare", "begin", "-", status=1, silent=False).stderr.decode()
    assert said == (
        "A restore in place of domain 'web' was interrupted: its disks (vda, vdb) are partly as in the backup and"
        " partly as before, and a start would damage what is on them. Run 'vbackup restore web --in-place -r /srv',"
        f" which ends the restore; if the disks have been restored in another way, remove {path}.\n"
    )
    assert events.events(UUID)[-1].refused
    for call in CALLS[1:]:
        hook.call("web", *call)
    half_restored.end(UUID, ["vda"])
    hook.call("web", "prepare", "begin", "-", status=1, silent=False)
    half_restored.end(UUID, ["vdb"])
    hook.call("web", "prepare", "begin", "-")


def test_other_domain_is_not_half_restored(hook: Hook) -> None:
    half_restore()
    xml = XML.replace(UUID.encode(), OTHER_UUID.encode())
    hook.call("web", "prepare", "begin", "-", xml=xml)


UNREADABLE = [b"", b"[]", b"{", b"\xff", b"[" * 4000, b'{"disks": [1], "command": "x"}', b"{}" * 50000]


@pytest.mark.parametrize("text", UNREADABLE, ids=lambda text: ascii(text[:10]))
def test_record_that_cannot_be_read_is_one_all_the_same(hook: Hook, text: bytes) -> None:
    path = half_restore()
    path.write_bytes(text)
    said = hook.call("web", "prepare", "begin", "-", status=1, silent=False).stderr.decode()
    assert "its disks (some) are partly" in said
    assert "'vbackup restore --in-place', which ends the restore" in said


def test_long_path_in_a_command_fits(hook: Hook) -> None:
    half_restore("vbackup restore web --in-place -r /" + "r" * 16000)
    said = hook.call("web", "prepare", "begin", "-", status=1, silent=False).stderr
    assert said.count(b"r" * 16000) == 1


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_record_stops_no_guest(hook: Hook, make: object) -> None:
    assert callable(make)
    half_restored.DIRECTORY.mkdir(parents=True)
    make(half_restored.DIRECTORY / UUID)
    done = subprocess.run(
        hook.argv("web", "prepare", "begin", "-"), input=XML, capture_output=True, check=False, timeout=30
    )
    assert done.returncode == (1 if make is os.mkfifo else 0)


# what a live restore has left half done


def half_restore_live() -> Path:
    half_restored.DIRECTORY.parent.mkdir(exist_ok=True)
    work = half_restored.Work.LIVE
    half_restored.begin(UUID, ["vda"], domain="web", command="vbackup resume", reporter=Recorder(), work=work)
    return half_restored.DIRECTORY / UUID


@pytest.mark.parametrize("kind", ["ended", "pid used again", "boot before", "no pid", "odd pid"])
def test_domain_of_a_live_restore_starts_while_its_process_lives(hook: Hook, kind: str) -> None:
    path = half_restore_live()
    hook.call("web", "prepare", "begin", "-")
    path.write_text(json.dumps({**json.loads(path.read_text()), "owner": json.loads(STALE[kind]())}))
    said = hook.call("web", "prepare", "begin", "-", status=1, silent=False).stderr.decode()
    assert "A live restore of domain 'web' was interrupted: not all of the data of its disks (vda) is there." in said
    assert "Run 'vbackup resume', which ends the restore" in said
