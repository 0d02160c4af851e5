"""The configuration is kept in the repository, for the day on which the machine is gone."""

from __future__ import annotations

import os
import stat
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from tests.unit.config.conftest import Load
from tests.unit.config.test_loading import WHOLE
from vbackup.config import keeping, loading
from vbackup.errors import ConfigError, StorageError, UsageError
from vbackup.model import HostIdentity

NOW = datetime(2026, 11, 30, 1, tzinfo=timezone.utc)
HOST = HostIdentity("hv1", "0123456789abcdef0123456789abcdef")
OTHER = HostIdentity("hv2", "fedcba9876543210fedcba9876543210")


def file_of(repository: Path, name: str = "hv1") -> Path:
    """The configuration of a host."""
    [found] = repository.glob(f"config-{name}-*.toml")
    return found


def test_recovered_configuration_is_equal(load: Load, tmp_path: Path) -> None:
    config = load(WHOLE).config
    repository = tmp_path / "repository"
    repository.mkdir()
    assert keeping.keep(repository, config, host=HOST, now=NOW) is True
    text = keeping.kept(repository)
    assert text.startswith(
        "# The configuration of vbackup on hv1, as it was when a run used it (2026-11-30T01:00:00Z)."
    )
    new = tmp_path / "etc" / "vbackup.toml"
    keeping.write_new(new, text)
    assert loading.read([new]) == config
    assert stat.S_IMODE(file_of(repository).stat().st_mode) == 0o600
    assert stat.S_IMODE(new.stat().st_mode) == 0o600


def test_it_is_written_only_if_it_has_changed(load: Load, tmp_path: Path) -> None:
    config = load(WHOLE).config
    keeping.keep(tmp_path, config, host=HOST)
    before = file_of(tmp_path).stat()
    assert keeping.keep(tmp_path, config, host=HOST) is False
    after = file_of(tmp_path).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    changed = load(WHOLE.replace("keep-daily = 7", "keep-daily = 8")).config
    assert keeping.keep(tmp_path, changed, host=HOST) is True
    assert "keep-daily = 8" in keeping.kept(tmp_path)
    assert len(list(tmp_path.glob("config*"))) == 1


def test_each_host_has_its_own_and_one_is_taken(load: Load, tmp_path: Path) -> None:
    config, changed = load(WHOLE).config, load(WHOLE.replace("keep-daily = 7", "keep-daily = 8")).config
    keeping.keep(tmp_path, config, host=HOST, now=NOW)
    keeping.keep(tmp_path, changed, host=OTHER, now=NOW)
    assert keeping.keep(tmp_path, config, host=HOST) is False  # they do not replace each other's
    assert [(one.host, one.time) for one in keeping.all_kept(tmp_path)] == [("hv1", NOW), ("hv2", NOW)]
    assert "keep-daily = 7" in keeping.kept(tmp_path, "hv1")
    assert "keep-daily = 8" in keeping.kept(tmp_path, "hv2")
    assert "keep-daily = 8" in keeping.kept(tmp_path, here=OTHER)
    with pytest.raises(UsageError, match=r"of 2 hosts: hv1, hv2\. Say with --host which one"):
        keeping.kept(tmp_path, here=HostIdentity("new", HOST.machine_id))
    with pytest.raises(UsageError, match="no configuration of host 'hv3'"):
        keeping.kept(tmp_path, "hv3")


def test_machines_of_one_name_have_one_each_and_so_have_clones_with_one_machine_id(load: Load, tmp_path: Path) -> None:
    config = load(WHOLE).config
    for one in (HOST, HostIdentity("hv1", OTHER.machine_id)):
        keeping.keep(tmp_path, config, host=one)
    assert len(list(tmp_path.glob("config-hv1-*.toml"))) == 2
    keeping.keep(tmp_path, config, host=HostIdentity("clone", HOST.machine_id))
    assert {one.host for one in keeping.all_kept(tmp_path)} == {"hv1", "clone"}
    assert len(list(tmp_path.glob("config-*.toml"))) == 3
    keeping.keep(tmp_path, config, host=HostIdentity("../no id", None))
    assert (tmp_path / "config-_no_id.toml").exists()


def test_of_two_machines_of_one_name_each_is_reached(load: Load, tmp_path: Path) -> None:
    config, changed = load(WHOLE).config, load(WHOLE.replace("keep-daily = 7", "keep-daily = 8")).config
    twin = HostIdentity("hv1", OTHER.machine_id)
    keeping.keep(tmp_path, config, host=HOST, now=NOW)
    keeping.keep(tmp_path, changed, host=twin, now=NOW + timedelta(days=1))
    first, second = (one.path.stem for one in keeping.all_kept(tmp_path))
    assert "keep-daily = 7" in keeping.kept(tmp_path, first)
    assert "keep-daily = 8" in keeping.kept(tmp_path, second)
    assert "keep-daily = 7" in keeping.kept(tmp_path, here=HOST)
    assert "keep-daily = 8" in keeping.kept(tmp_path, here=twin)
    keeping.keep(tmp_path, config, host=HostIdentity("hv2", None), now=NOW)
    for host, here in (("hv1", None), (None, HostIdentity("hv1", "0" * 32))):  # the latter was installed again
        with pytest.raises(UsageError, match=rf"of 2 hosts: {first}, {second}\. Say with --host which one"):
            keeping.kept(tmp_path, host, here=here)
    with pytest.raises(UsageError, match=rf"of 3 hosts: {first}, {second}, hv2\."):
        keeping.kept(tmp_path)


def test_the_one_file_of_earlier_versions_is_read_and_replaced_by_its_host_only(load: Load, tmp_path: Path) -> None:
    config = load(WHOLE).config
    keeping.keep(tmp_path, config, host=HOST, now=NOW)
    old = tmp_path / "config.toml"
    file_of(tmp_path).rename(old)
    assert [(one.host, one.time) for one in keeping.all_kept(tmp_path)] == [("hv1", NOW)]
    assert "keep-daily = 7" in keeping.kept(tmp_path)
    keeping.keep(tmp_path, config, host=OTHER)
    assert old.exists()
    keeping.keep(tmp_path, config, host=HOST)
    assert not old.exists()
    assert [one.host for one in keeping.all_kept(tmp_path)] == ["hv1", "hv2"]


def test_what_is_planted_in_its_place_is_replaced(load: Load, tmp_path: Path) -> None:
    config = load(WHOLE).config
    repository = tmp_path / "repository"
    repository.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    strange = HostIdentity("hv1\n[job.x]", HOST.machine_id)
    keeping.keep(repository, config, host=strange)
    [path] = repository.iterdir()
    path.unlink()
    path.symlink_to(victim)
    keeping.keep(repository, config, host=strange)
    assert victim.read_text() == "precious"
    assert not path.is_symlink()
    assert "\n[job.x]" not in keeping.kept(repository)
    path.write_bytes(b"\xff" * 100)
    assert keeping.keep(repository, config, host=strange) is True


def test_repository_without_one_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no run of 'vbackup run' has kept one there"):
        keeping.kept(tmp_path)


@pytest.mark.parametrize("data", [b"\xff", b"a = ", b"[job.a]\nx = 1\n"])
def test_damaged_one_is_not_given_away(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "config.toml").write_bytes(data)
    with pytest.raises(StorageError, match="is damaged"):
        keeping.kept(tmp_path)


def test_what_is_no_file_or_too_large_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.toml")
    with pytest.raises(StorageError, match="cannot be read"):
        keeping.kept(tmp_path)
    (tmp_path / "config.toml").unlink()
    (tmp_path / "config.toml").write_bytes(b"#" * 2**21)
    with pytest.raises(StorageError, match="cannot be read"):
        keeping.kept(tmp_path)


def test_file_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "vbackup.toml"
    path.write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for there in (path, tmp_path / "link"):
        with pytest.raises(ConfigError, match="never overwritten"):
            keeping.write_new(there, "theirs")
    assert path.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_repository_that_cannot_be_written_is_an_error(load: Load, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="keep the configuration"):
        keeping.keep(tmp_path / "none", load(WHOLE).config, host=HOST)
