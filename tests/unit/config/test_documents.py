"""The files of a configuration are found, only those that nobody else can change are read, and nothing is twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vbackup.config import documents
from vbackup.config.documents import default_paths, directory, dotted, read
from vbackup.config.model import Place

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def faults(*paths: Path) -> list[str]:
    return [str(one) for one in read(paths).faults]


# Which files


def test_of_root_they_are_in_etc_of_others_in_their_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert directory({}, 0) == Path("/etc/vbackup")
    assert directory({"XDG_CONFIG_HOME": "/elsewhere"}, 0) == Path("/etc/vbackup")
    assert directory({}, 1000) == Path("/home/someone/.config/vbackup")
    assert directory({"XDG_CONFIG_HOME": "/elsewhere"}, 1000) == Path("/elsewhere/vbackup")
    assert directory({"XDG_CONFIG_HOME": "relative"}, 1000) == Path("/home/someone/.config/vbackup")


def test_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    assert default_paths(tmp_path) == ()
    (tmp_path / "conf.d").mkdir()
    for name in ("20-b.toml", "10-a.toml", ".hidden.toml", "readme.txt", "30-c.toml~", "x.toml.dpkg-dist"):
        (tmp_path / "conf.d" / name).touch()
    found = [tmp_path / "conf.d" / "10-a.toml", tmp_path / "conf.d" / "20-b.toml"]
    assert list(default_paths(tmp_path)) == found
    (tmp_path / "vbackup.toml").symlink_to("/nowhere")  # it is there, and reading it says what is wrong
    assert list(default_paths(tmp_path)) == [tmp_path / "vbackup.toml", *found]


# Who can write them


@pytest.mark.parametrize("mode", [0o646, 0o602])
def test_file_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "x.toml"
    path.touch()
    path.chmod(mode)
    assert faults(path) == [f"{path}: Others can write to the file, and change what vbackup does: 'chmod go-w' it."]


@needs_root
def test_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.touch()
    os.chown(path, 1, 0)
    assert faults(path) == [f"{path}: The file is daemon's, who could change what vbackup does: 'chown root' it."]
    os.chown(path, 0, 1)
    path.chmod(0o664)
    assert "Others can write" in faults(path)[0]
    os.chown(path, 0, 0)
    assert faults(path) == []


@needs_root
def test_users_file_is_refused_if_a_group_of_others_can_write_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.toml"
    path.touch()
    path.chmod(0o664)
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    monkeypatch.setattr(os, "getegid", lambda: 1)
    os.chown(path, 1, 2)
    assert "Others can write" in faults(path)[0]
    os.chown(path, 1, 1)
    assert faults(path) == []


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert faults(tmp_path / "fifo") == [f"{tmp_path}/fifo: This is not a file."]
    assert "cannot be read" in faults(tmp_path)[0]
    assert "No such file" in faults(tmp_path / "missing")[0]
    assert "This is not a file." in faults(Path("/dev/zero"))[0]
    assert "cannot be read" in faults(Path("/a\0b"))[0]


def test_large_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"# " + b"x" * (10 * 1024 * 1024))
    assert faults(path) == [f"{path}: The file is larger than 1 MiB, which no configuration is."]


# What is no TOML


@pytest.mark.parametrize(
    ("data", "line", "said"),
    [
        (b"a = 1\nb = \n", 2, "This is not TOML: Invalid value."),
        (b"a = 1\nb = 'x\n", 2, "This is not TOML"),
        (b"\r\n\r\na == 1\r\n", 3, "This is not TOML"),
        (b"a = 1\nb = [1,\n2", 3, "This is not TOML"),
        (b"a = 1\n\xff = 2\n", 2, "This is not UTF-8"),
        (b"a = 1\nb = '\x00'\n", 2, "This is not TOML: "),
        (b"\xef\xbb\xbfa = 1\n", 1, "This is not TOML"),
        (b"a = " + b"[" * 5000 + b"]" * 5000, 1, "This is refused: values are nested more than 20 deep"),
        (b"x = 1\na = " + b"9" * 5000, 2, "This is refused: a value without quotes is longer than 100 characters"),
        (b"a = 99-99-99\n", 1, "This is not TOML"),
        (b"a = 2026-13-01\n", 1, "This is not TOML"),
    ],
)
def test_fault_has_the_line_of_the_parser(tmp_path: Path, data: bytes, line: int, said: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(data)
    (fault,) = faults(path)
    assert fault.startswith(f"{path}:{line}: {said}")


@pytest.mark.parametrize(
    ("text", "line", "said", "first"),
    [
        ("a = 1\na = 2\n", 2, "Key 'a' is already at {}: leave out one of them.", 1),
        ("[t]\nx = 1\n\n[t]\n", 4, "Table [t] is already at {}: leave out one of them.", 1),
        ("[job.n.prune]\n[job.n]\n[job.n]\n", 3, "Table [job.n] is already at {}: leave out one of them.", 2),
        ("[t]\n[t.'a b']\nx.y = 1\nx.y = 2\n", 4, "Key 't.\"a b\".x.y' is already at {}: leave out one of them.", 3),
        ("[[t]]\n[t]\n", 2, "Table [t] is already at {}: leave out one of them.", 1),
        ("t = { a = 1, a = 2 }\n", 1, "Key 't.a' is already at {}: leave out one of them.", 1),
        ("x = 1\n[x.y]\n", 2, "Table [x.y] cannot be added: 'x' is complete at {}.", 1),
        ("x = { a = 1 }\n[z]\n[x.y]\n", 3, "Table [x.y] cannot be added: 'x' is complete at {}.", 1),
        ("[t]\nx = 1\nx.y = 2\n", 3, "Key 't.x.y' cannot be added: 't.x' is complete at {}.", 2),
    ],
)
def test_what_is_there_twice_in_one_file_is_named_with_both_places(
    tmp_path: Path, text: str, line: int, said: str, first: int
) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    assert faults(path) == [f"{path}:{line}: {said.format(f'{path}:{first}')}"]


# One document


def test_tables_of_several_files_are_one_document(tmp_path: Path) -> None:
    one, two = tmp_path / "1.toml", tmp_path / "2.toml"
    one.write_text("[job.nightly]\nat = '01:00'\n[repository.main]\npath = '/a'\n")
    two.write_text("\n[job.weekly]\non = ['sat']\n[job.nightly.prune]\nkeep-daily = 7\n")
    found = read([one, two])
    assert found.faults == []
    assert found.tables == {
        "job": {"nightly": {"at": "01:00", "prune": {"keep-daily": 7}}, "weekly": {"on": ["sat"]}},
        "repository": {"main": {"path": "/a"}},
    }
    assert found.place(("job", "nightly", "at")) == Place(one, 2)
    assert found.place(("job", "nightly", "prune", "keep-daily")) == Place(two, 5)
    assert found.place(("job", "weekly", "on", "0")) == Place(two, 3)


@pytest.mark.parametrize(
    ("first", "second", "line", "said"),
    [
        ("[job.a]\nat = '1'\n", "\n[job.a]\non = 'x'\n", 2, "Table [job.a] is already at {one}:1: leave out one"),
        ("[job]\n[job.a]\nat = 1\n", "job.a.at = 2\n", 1, "Key 'job.a.at' is already at {one}:3"),
        ("job = {a = {at = 1}}\n", "[job.b]\nat = 2\n", 1, "Table [job] is already at {one}:1"),
        ("[job.a]\n", "job = {b = {at = 1}}\n", 1, "Table [job] is already at {one}:1"),
        ("job = 1\n", "[job.a]\n", 1, "Table [job] is already at {one}:1"),
        ("[job.a]\n", "job = 1\n", 1, "Key 'job' is already at {one}:1"),
        ("x = [1]\n", "\n\nx = [1]\n", 3, "Key 'x' is already at {one}:1"),
    ],
)
def test_what_is_in_two_files_is_a_fault_with_both_places(
    tmp_path: Path, first: str, second: str, line: int, said: str
) -> None:
    one, two = tmp_path / "1.toml", tmp_path / "2.toml"
    one.write_text(first)
    two.write_text(second)
    (fault,) = faults(one, two)
    assert fault.startswith(f"{two}:{line}: " + said.format(one=one))


def test_faults_of_all_files_are_found(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.toml").write_text("a = \n")
    assert len(faults(*(tmp_path / f"{number}.toml" for number in range(3)))) == 3


def test_path_of_a_key_is_shown_as_toml_has_it() -> None:
    assert dotted(("job", "a b", 'c"\n', "d-e")) == 'job."a b"."c\\"\\u000a".d-e'
    assert documents.Document().place(("a",)) == Place(Path(), 0)
