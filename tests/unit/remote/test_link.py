"""The link, with a program in place of ssh that runs the helper on this host."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.remote.conftest import Virsh
from vbackup.errors import BusyError, ForwardingError, LinkLostError, RemoteError, UnsuitableError
from vbackup.images import destination
from vbackup.qemu import image_lock
from vbackup.remote import helper
from vbackup.remote.address import Address
from vbackup.remote.link import Link, _private_directory

#: Other tests, which may run at the same time, guard no domain of this UUID.
UUID = str(uuid.uuid4())


def test_files_and_programs(link: Link, tmp_path: Path) -> None:
    content = bytes(range(256)) * 2500
    link.write_file(str(tmp_path / "a"), [content, b"end"])
    assert b"".join(link.read_file(str(tmp_path / "a"))) == content + b"end"
    assert link.stat(str(tmp_path / "a"))["size"] == len(content) + 3
    assert link.run(["cat"], b"x") == b"x"
    with pytest.raises(RemoteError, match=r"could not run sh on root@hv1: why\."):
        link.run(["sh", "-c", "echo why >&2; exit 1"])


def test_file_whose_data_fails_is_not_made(link: Link, tmp_path: Path) -> None:
    def data() -> Iterator[bytes]:
        yield b"abc"
        raise KeyError

    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(KeyError):
        link.write_file(str(place / "a"), data())
    assert list(place.iterdir()) == []


def test_forwarding_that_sshd_forbids(link: Link) -> None:
    with pytest.raises(ForwardingError, match="Forwarding is not allowed"):
        link.forward(Path("/nothing"))


@pytest.mark.parametrize("path", ["/run/${AWS_SECRET_ACCESS_KEY}", "/run/%h", "/run/a:b", "relative", "", None])
def test_path_of_a_hypervisor_is_not_one_that_ssh_interprets(
    link: Link, monkeypatch: pytest.MonkeyPatch, path: str | None
) -> None:
    forwarded: list[object] = []
    monkeypatch.setattr(link, "_forward", forwarded.append)
    monkeypatch.setattr(link, "_call", lambda *_words, **_parameters: path)
    with pytest.raises(RemoteError, match="ssh forwards only letters"):
        link.forward(Path("/nothing"))
    assert forwarded == []


@pytest.mark.parametrize("name", ["a:b", "${HOME}", "%h", "a b"])
def test_own_directory_has_a_path_that_ssh_takes_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    made = _private_directory()
    try:
        assert made.parent == Path("/tmp")
    finally:
        made.rmdir()


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "..", ".", "", "a\0b"])
def test_names_lead_nowhere_else(link: Link, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(link, "_call", lambda *_words, **_parameters: ["harmless", name])
    with pytest.raises(RemoteError, match="is no name of a file"):
        link.names_in("/directory")


@pytest.mark.parametrize(
    ("answer", "words"),
    [("AAAA", "3 bytes came back where 2 were"), ("*", "not the content"), (None, "not the content")],
)
def test_piece_is_no_more_than_was_asked_for(
    link: Link, monkeypatch: pytest.MonkeyPatch, answer: str | None, words: str
) -> None:
    monkeypatch.setattr(link, "_call", lambda *_words, **_parameters: answer)
    with pytest.raises(RemoteError, match=words):
        link.get(1, 0, 2)


@pytest.mark.parametrize("extents", [[[0, 0]], [[4, 8]], [[8, 12], [10, 14]], [[8, 24]], [[12, 8]]])
def test_extents_go_forward_and_end(link: Link, monkeypatch: pytest.MonkeyPatch, extents: list[list[int]]) -> None:
    monkeypatch.setattr(link, "_call", lambda *_words, **_parameters: {"size": 16, "extents": extents})
    with pytest.raises(RemoteError, match="it would be from"):
        link.extents(1, 5)


def test_symbolic_link_is_followed_unless_it_must_not_be(link: Link, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    path = str(tmp_path / "link")
    assert b"".join(link.read_file(path)) == b"content"
    assert link.stat(path)["size"] == 7
    assert stat.S_ISLNK(link.stat(path, follow=False)["mode"])
    with pytest.raises(RemoteError, match="symbolic links"):
        next(link.read_file(path, follow=False))


def test_nothing_stays_behind(link: Link, virsh: Virsh) -> None:
    directory = Path(link.directory())
    assert directory.stat().st_mode & 0o777 == 0o700
    own = link._directory
    link.close()
    assert not directory.exists()
    assert not own.exists()
    with pytest.raises(LinkLostError):
        link.run(["true"])


def test_silence_without_a_link() -> None:
    link = Link(Address("hv1", "qemu:///system"))
    link.close()
    assert link.is_lost
    with pytest.raises(LinkLostError, match="is not open"):
        link.refuse_lost()


def test_image_that_no_qemu_may_open(link: Link, tmp_path: Path) -> None:
    path = tmp_path / "vda.qcow2"
    path.write_bytes(b"")
    handle = link.lock_image(str(path))
    assert handle is not None
    with path.open("rb") as file:  # as QEMU looks whether somebody grants nobody else to write
        reply = fcntl.fcntl(file, fcntl.F_OFD_GETLK, image_lock._FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 201, 1, 0))
    assert image_lock._FLOCK.unpack(reply)[0] == fcntl.F_RDLCK
    link.close_handle(handle)
    with path.open("rb+") as file:  # as QEMU that writes to it
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, image_lock._FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 101, 1, 0))
        assert link.lock_image(str(path)) is None
    assert link.lock_image(str(path)) is not None
    with pytest.raises(RemoteError, match="No such file"):
        link.lock_image(str(tmp_path / "none"))


def test_file_is_locked_until_the_handle_is_closed(link: Link, tmp_path: Path) -> None:
    path = tmp_path / "domain.xml"
    path.touch()
    handle = link.lock_file(str(path))
    assert handle is not None
    assert link.lock_file(str(path)) is None
    link.close_handle(handle)
    assert link.lock_file(str(path)) is not None
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(RemoteError, match="symbolic links"):
        link.lock_file(str(tmp_path / "link"))


def test_socket_that_cannot_be_given_to_qemu(link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = link._call

    def refused(do: str, what: str, **parameters: Any) -> Any:
        if do == "forwarded":
            raise RemoteError("hv1", what, "Operation not permitted", errno=errno.EPERM)
        return call(do, what, **parameters)

    monkeypatch.setattr(link, "_call", refused)
    monkeypatch.setattr(link, "_forward", lambda _argv: None)
    with pytest.raises(UnsuitableError, match=r"user 7, .* URI of root"):
        link.serve_at(tmp_path / "nbd", tmp_path / "live.sock", uid=7, gid=8)


def test_what_is_staged_goes_with_the_link_unless_it_is_published(link: Link, tmp_path: Path) -> None:
    kept, gone = tmp_path / "new" / "kept", tmp_path / "new" / "gone"
    for place in (kept, gone):
        stage = Path(link.stage(str(place)))
        assert (place.stat().st_mode & 0o777, stage.stat().st_mode & 0o777) == (0o711, 0o700)
        (stage / "file").write_text(place.name)
        (stage / "tree").mkdir()
        (stage / "tree" / "leaf").touch()
        if place is kept:
            link.publish([(str(stage / one), str(place / one)) for one in ("tree", "file")])
    link.close()
    assert sorted(str(one.relative_to(tmp_path)) for one in kept.parent.rglob("*")) == [
        *("new/kept", "new/kept/file", "new/kept/tree", "new/kept/tree/leaf")
    ]


@pytest.mark.parametrize("taken", ["tree", "file"])
def test_publishes_all_or_none(link: Link, tmp_path: Path, taken: str) -> None:
    place = tmp_path / "place"
    place.mkdir()
    stage = Path(link.stage(str(place)))
    (stage / "first").touch()
    (stage / "tree").mkdir()
    (stage / "file").touch()
    (place / taken).mkdir() if taken == "tree" else (place / taken).write_text("another's")
    moves = [(str(stage / one), str(place / one)) for one in ("first", "tree", "file")]
    with pytest.raises(RemoteError, match="File exists"):
        link.publish(moves)
    assert sorted(one.name for one in place.iterdir() if one != stage) == [taken]
    assert taken == "tree" or (place / taken).read_text() == "another's"


@pytest.mark.parametrize("is_left", [False, True])
def test_failure_releases_the_domain_if_nothing_of_it_is_left(link: Link, virsh: Virsh, is_left: bool) -> None:
    nodes = [{"node-name": "vbackup-0123456789ab-vda"}] if is_left else []
    virsh.answer("query-jobs", '{"return": []}')
    virsh.answer("query-named-block-nodes", json.dumps({"return": nodes}))
    virsh.answer("query-fdsets", '{"return": []}')
    with pytest.raises(KeyError), link.guarded(UUID, jobs="vbackup-0123456789ab-", nodes="vbackup-0123456789ab-"):
        raise KeyError
    assert _is_claimed() is is_left
    with link.guarded(UUID, jobs="x", nodes="x"):
        assert _is_claimed()
    assert not _is_claimed()
    _lock_file().unlink()


def _is_claimed() -> bool:
    """Return True if the helper keeps others from the domain."""
    with _lock_file().open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _lock_file() -> Path:
    return Path(helper._runtime_directory(), f"remote-{UUID}.lock")


@pytest.mark.parametrize("answer", [None, [], "x", {}, {"status": "0", "stderr": ""}, {"status": 0, "stderr": 1}])
@pytest.mark.parametrize(
    "ask",
    [
        lambda link: link.try_run(["true"]),
        lambda link: link.ended(1, within_s=1),
        lambda link: link.stat("/x"),
        lambda link: link.free_bytes("/x"),
        lambda link: link.extents(1, 0),
        lambda link: link.start(["true"]),
        lambda link: link.nameless_file("/x"),
        lambda link: link.names_in("/x"),
        lambda link: link.pass_handle("uuid", "opaque", 1),
    ],
)
def test_answer_that_is_none_is_an_error_of_the_host(
    link: Link, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Link], object], answer: object
) -> None:
    monkeypatch.setattr(link, "_call", lambda *_words, **_parameters: answer)
    if (answer is None and ask(_Asked()) == "ended") or (answer == [] and ask(_Asked()) == "names_in"):
        return  # it runs on; an empty directory
    with pytest.raises(RemoteError):
        ask(link)


class _Asked:
    """Answers with the name of the method that is called."""

    def __getattr__(self, name: str) -> Callable[..., str]:
        return lambda *_words, **_parameters: name


@pytest.mark.parametrize("extents", [None, [1], [[1]], [["0", 4]], [[0, 4, 8]], [{}]])
def test_extents_are_pairs_of_numbers(link: Link, monkeypatch: pytest.MonkeyPatch, extents: object) -> None:
    monkeypatch.setattr(link, "_call", lambda *_words, **_parameters: {"size": 16, "extents": extents})
    with pytest.raises(RemoteError):
        link.extents(1, 0)


def test_file_from_before_1970_has_a_negative_time(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = dict.fromkeys(("mode", "size", "ctime_ns", "dev", "ino", "uid", "gid", "blocks"), 1)
    monkeypatch.setattr(link, "_call", lambda *_words, **_parameters: {**answer, "mtime_ns": -5, "more": "x"})
    assert link.stat("/x") == {**answer, "mtime_ns": -5}


def test_domain_that_another_vbackup_there_has_marked(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([{"is_set": False, "other": 77}, {"is_set": True, "other": None}, None, None])
    asked: list[str] = []

    def call(do: str, *_words: str, **_parameters: str) -> object:
        asked.append(do)
        return next(answers)

    monkeypatch.setattr(link, "_call", call)
    with pytest.raises(BusyError, match=r"Another vbackup on root@hv1 \(process 77\)"), link.marked(UUID, "backup"):
        pytest.fail("it goes on")
    with link.marked(UUID, "backup"):
        assert asked == ["mark", "mark"]
    assert asked == ["mark", "mark", "unmark"]


def test_domain_that_a_session_there_has_marked(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"is_set": False, "other": 77, "session": "20261130T120000Z-abcdef"}
    monkeypatch.setattr(link, "_call", lambda *_words, **_parameters: answer)
    said = r"^Pull session 20261130T120000Z-abcdef has the disks of domain .* which is off: commit or abort"
    with pytest.raises(BusyError, match=said), link.marked(UUID, "backup"):
        pytest.fail("it goes on")
    with pytest.raises(BusyError, match=said):
        link.mark_session(UUID, "20261130T130000Z-abcdef", 78)
    answer["session"] = "x; rm -r /"
    with pytest.raises(BusyError, match=r"Another vbackup .*\(process 77\)"), link.marked(UUID, "backup"):
        pytest.fail("it goes on")


def test_user_who_may_not_set_marks_goes_without(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(do: str, what: str, **_parameters: str) -> object:
        assert do == "mark"
        raise RemoteError("hv1", what, "Permission denied", errno=13)

    monkeypatch.setattr(link, "_call", call)
    with link.marked(UUID, "backup"):
        pass


def test_directories_of_helpers_that_were_killed_are_removed_by_the_next(tmp_path: Path) -> None:
    ended = subprocess.Popen(["sleep", "60"])
    owners = [(ended.pid, helper._start_time(ended.pid)), (os.getpid(), helper._start_time(os.getpid()))]
    owners.append((os.getpid(), "1"))  # the pid is another process's now
    ended.kill()
    ended.wait()
    boot = helper._short_boot_id()
    names = [f"helper-{pid}-{start_ticks}-{boot}-abc" for pid, start_ticks in owners]
    names.append(names[1].replace(boot, "0" * 8 if boot != "0" * 8 else "1" * 8))  # all the same, before a boot
    for name in [*names, "helper-x-1-abc", "contents", f"remote-{UUID}.lock"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "nbd.sock").touch()
    (tmp_path / names[0] / ".vbackup-abcdefgh").mkdir()  # what a copy of a domain had
    helper._remove_dead_directories(os.fspath(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {names[1], "helper-x-1-abc", "contents", f"remote-{UUID}.lock"}


def test_unfinished_files_are_those_of_a_restore_on_the_host_itself() -> None:
    assert (helper.STAGE.pattern, helper.STAGE_LOCK) == (destination._TEMPORARY.pattern, destination._LOCK)
