"""The state of a restored TPM gets to where libvirt looks for it, all of it or nothing."""

from __future__ import annotations

import errno
import os
import pwd
import stat
from pathlib import Path

import pytest

from vbackup import files
from vbackup.domain import swtpm
from vbackup.errors import NoSpaceError, StorageError

ME = (os.geteuid(), os.getegid())


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "out" / "tpm"
    path.mkdir(parents=True, mode=0o700)
    (path / "tpm2-00.permall").write_bytes(b"keys")
    (path / "tpm2-00.permall").chmod(0o600)
    return path


def test_state_is_copied_and_the_way_to_it_can_be_entered(state: Path, tmp_path: Path) -> None:
    place = tmp_path / "swtpm" / "uuid" / "tpm2"
    swtpm.install(state, place, ME)
    assert (place / "tpm2-00.permall").read_bytes() == b"keys"
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (place.parent, place, place / "tpm2-00.permall")]
    assert modes == [0o711, 0o700, 0o600]
    assert [path.name for path in place.parent.iterdir()] == ["tpm2"]
    swtpm.remove(place)
    assert list((tmp_path / "swtpm").iterdir()) == []
    assert (state / "tpm2-00.permall").exists()


def test_others_can_enter_the_way_whatever_the_umask_is(state: Path, tmp_path: Path) -> None:
    place = tmp_path / "lib" / "swtpm" / "uuid" / "tpm2"
    before = os.umask(0o077)
    try:
        swtpm.install(state, place, None)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (*list(place.parents)[:3], place)]
    assert modes == [0o711] * 3 + [0o700]


def test_state_is_on_the_disk_with_the_way_to_it(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only other copy is removed then."""
    synced, real = [], files.fsync
    monkeypatch.setattr(files, "fsync", lambda path: (synced.append(path), real(path)))
    (state / "sub").mkdir()
    place = tmp_path / "swtpm" / "uuid" / "tpm2"
    swtpm.install(state, place, None)
    unfinished = place.with_name(".tpm2.vbackup")
    assert {unfinished, unfinished / "tpm2-00.permall", unfinished / "sub"} <= {*synced}
    assert synced[-3:] == [place.parent, tmp_path / "swtpm", tmp_path]


def test_full_filesystem_is_told_as_such(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_new", refuse)
    with pytest.raises(NoSpaceError):
        swtpm.install(state, tmp_path / "swtpm" / "uuid" / "tpm2", None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("dangling", [True, False])
def test_state_that_is_there_stays(state: Path, tmp_path: Path, dangling: bool) -> None:
    place = tmp_path / "swtpm" / "tpm2"
    place.parent.mkdir()
    place.symlink_to("nowhere") if dangling else place.mkdir()
    for refuse in (lambda: swtpm.refuse_existing(place), lambda: swtpm.install(state, place, ME)):
        with pytest.raises(StorageError, match=f"{place} already exists, the state of a TPM .* move it away"):
            refuse()
    assert [path.name for path in place.parent.iterdir()] == ["tpm2"]


def test_failure_leaves_nothing(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> None:
        raise OSError(5, "Input/output error")

    def refuse_last(path: Path) -> None:
        if path == tmp_path:
            refuse(path)

    for failing in (refuse, refuse_last):
        monkeypatch.setattr(files, "fsync", failing)
        with pytest.raises(StorageError, match="Input/output error"):
            swtpm.install(state, tmp_path / "swtpm" / "uuid" / "tpm2", ME)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('swtpm_user = "+42"\nswtpm_group = "+43"\n', (42, 43)),
        ('  swtpm_user="root"\n#swtpm_group = "+43"\n', (0, None)),
        ('#swtpm_user = "nobody"\n', (None, None)),
        ('swtpm_user = "no such user"\nswtpm_group = "7"', (0, 7)),
        (None, (None, None)),
    ],
)
def test_owner_is_the_user_that_libvirt_names(
    tmp_path: Path, text: str | None, expected: tuple[int | None, int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """None stands for libvirt's own choice."""
    if text is not None:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc" / "qemu.conf").write_text(text)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    try:
        of_tss = pwd.getpwnam("tss")
        own = (of_tss.pw_uid, of_tss.pw_gid)
    except KeyError:
        own = (0, 0)
    found = swtpm.owner(f"qemu:///embed?root={tmp_path}")
    assert found == tuple(own[number] if one is None else one for number, one in enumerate(expected))


def test_who_is_not_root_keeps_the_files(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert swtpm.owner("qemu:///session") is None
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert swtpm.owner("qemu:///system") is None
    monkeypatch.setattr(os, "chown", lambda *_args, **_more: pytest.fail("the owner was changed"))
    swtpm.give(state, None)


def test_everything_in_it_is_given(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (state / "sub").mkdir()
    (state / "link").symlink_to("/etc/passwd")
    given = []
    monkeypatch.setattr(os, "chown", lambda path, *to, follow_symlinks: given.append((str(path), to, follow_symlinks)))
    swtpm.give(state, (1, 2))
    names = [state, state / "sub", state / "link", state / "tpm2-00.permall"]
    assert sorted(given) == sorted((str(name), (1, 2), False) for name in names)
