"""Scripts are found in the order of their names, and none is run that others could have written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.builders import UUID
from tests.unit.scripts.conftest import Write
from vbackup.errors import StorageError, UnsafeScriptError, UsageError
from vbackup.scripts import finding
from vbackup.scripts.finding import Found, ScriptPhase

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def find(directory: Path, *domain: str) -> Found:
    return finding.find(directory, domain, is_wanted=True)


def found_names(directory: Path, *domain: str) -> dict[str, list[str]]:
    scripts = find(directory, *domain).scripts
    return {phase.value: [os.path.relpath(one.path, directory) for one in found] for phase, found in scripts.items()}


def test_default_directory_that_is_missing_has_no_scripts(tmp_path: Path) -> None:
    assert finding.find(tmp_path / "none", is_wanted=False) == Found()


def test_directory_that_the_user_names_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no directory .*none with scripts"):
        find(tmp_path / "none")


def test_scripts_of_all_phases_are_found_in_the_order_of_their_names(directory: Path, write: Write) -> None:
    for phase in ScriptPhase:
        for name in ("20-b", "10-a", "9-c"):
            write(f"{phase.directory}/{name}")
    assert found_names(directory) == {
        phase.value: [f"{phase.directory}/{name}" for name in ("10-a", "20-b", "9-c")] for phase in ScriptPhase
    }


def test_scripts_of_a_domain_stand_among_those_for_all(directory: Path, write: Write) -> None:
    write("pre-backup.d/10-all")
    write("pre-backup.d/50-both")
    write("domains/web/pre-backup.d/50-both")
    write("domains/web/pre-backup.d/20-own")
    write(f"domains/{UUID}/pre-backup.d/30-uuid")
    write("domains/db/pre-backup.d/10-other")
    assert found_names(directory, "web", UUID)["pre-backup"] == [
        "pre-backup.d/10-all",
        "domains/web/pre-backup.d/20-own",
        f"domains/{UUID}/pre-backup.d/30-uuid",
        "pre-backup.d/50-both",
        "domains/web/pre-backup.d/50-both",
    ]


def test_name_and_uuid_that_lead_to_one_directory_run_its_scripts_once(directory: Path, write: Write) -> None:
    write("domains/web/pre-backup.d/10-own")
    (directory / "domains" / UUID).symlink_to("web")
    assert found_names(directory, "web", UUID)["pre-backup"] == ["domains/web/pre-backup.d/10-own"]


@pytest.mark.parametrize("name", ["", ".", "..", "../../elsewhere", "a\0b"])
def test_name_of_a_domain_does_not_lead_elsewhere(directory: Path, write: Write, name: str) -> None:
    write("domains/pre-backup.d/x")
    write("../elsewhere/pre-backup.d/x")
    assert find(directory, name).scripts == {}


@pytest.mark.parametrize("name", [".hidden", "10-x~", "10-x.dpkg-old", "10-x.dpkg-dist", "README"])
def test_what_others_leave_beside_scripts_is_ignored(directory: Path, write: Write, name: str) -> None:
    write(f"pre-backup.d/{name}", mode=0o666)
    assert find(directory) == Found()


def test_what_is_not_run_is_said(directory: Path, write: Write) -> None:
    write("pre-backup.d/10-x", mode=0o644)
    (directory / "pre-backup.d" / "20-directory").mkdir()
    (directory / "pre-backup.d" / "30-nothing").symlink_to("none")
    write("prebackup.d/10-x")
    (directory / "post-backup.d").touch()
    found = find(directory)
    assert found.scripts == {}
    top = str(directory)
    assert found.warnings == (
        f"{top}/post-backup.d is not a directory, so no post-backup script is run.",
        f"{top}/pre-backup.d/10-x is not executable, so it is not run; 'chmod u+x' changes that.",
        f"{top}/pre-backup.d/20-directory is not a file, so it is not run.",
        f"{top}/pre-backup.d/30-nothing leads to nothing, so it is not run.",
        f"{top}/prebackup.d is not the directory of a phase, so nothing in it is run; the closest is 'pre-backup.d'.",
    )


# what others could have written


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o1777])
@pytest.mark.parametrize("rpath", ["", "pre-backup.d", "pre-backup.d/10-x", "domains/web", "domains"])
def test_what_others_may_write_is_refused(directory: Path, write: Write, rpath: str, mode: int) -> None:
    write("pre-backup.d/10-x")
    write("domains/web/pre-backup.d/10-x")
    path = directory / rpath
    path.chmod(mode)
    if rpath == "domains" and mode & 0o1000:  # on the way: others cannot replace what is not theirs
        assert len(find(directory, "web").scripts) == 1
        return
    with pytest.raises(UnsafeScriptError, match="can be written by others than its owner") as refusal:
        find(directory, "web")
    assert refusal.value.path == str(path)
    assert refusal.value.status == 7


def test_script_of_another_domain_does_not_matter(directory: Path, write: Write) -> None:
    write("domains/db/pre-backup.d/10-x", mode=0o777)
    assert find(directory, "web") == Found()


@needs_root
@pytest.mark.parametrize("rpath", ["", "pre-backup.d", "pre-backup.d/10-x"])
def test_what_belongs_to_another_user_is_refused(directory: Path, write: Write, rpath: str) -> None:
    write("pre-backup.d/10-x")
    os.chown(directory / rpath, 65534, 65534)
    with pytest.raises(UnsafeScriptError, match="belongs to nobody, and neither to root nor to the caller"):
        find(directory)


def test_link_is_judged_by_every_place_on_its_way(directory: Path, write: Write, tmp_path: Path) -> None:
    target = write("../programs/flush").resolve()
    way = tmp_path / "way"
    way.mkdir(mode=0o755)
    (way / "flush").symlink_to(target)
    (directory / "pre-backup.d").mkdir(mode=0o755)
    (directory / "pre-backup.d" / "10-flush").symlink_to("../../way/flush")
    assert found_names(directory) == {"pre-backup": ["pre-backup.d/10-flush"]}
    for path in (way, target.parent, target):
        mode = path.stat().st_mode
        path.chmod(0o777)
        with pytest.raises(UnsafeScriptError) as refusal:
            find(directory)
        assert refusal.value.path == str(path)
        path.chmod(mode)


@needs_root
def test_link_of_another_user_is_refused(directory: Path, write: Write, tmp_path: Path) -> None:
    write("pre-backup.d/10-x")
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o1777)
    link = open_to_all / "scripts.d"
    link.symlink_to(directory)
    assert len(find(link).scripts) == 1
    os.lchown(link, 65534, 65534)
    # Where fs.protected_symlinks is 1, the kernel does not follow such a link.
    with pytest.raises((UnsafeScriptError, StorageError), match=r"belongs to nobody|Permission denied\..* nobody"):
        find(link)


def test_circle_of_links_is_an_error(directory: Path) -> None:
    (directory / "pre-backup.d").mkdir(mode=0o755)
    (directory / "pre-backup.d" / "10-x").symlink_to("10-x")
    with pytest.raises(StorageError, match="Cannot read the scripts in"):
        find(directory)
