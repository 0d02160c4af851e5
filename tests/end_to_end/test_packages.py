"""The Debian packages, the RPM packages and the wheel: built from the sources as they lie here, and used.

Everything is built here without a network. What PyPI has to give for the Debian package, ``make build/vendored/.ready``
fetches, as ``make check`` does.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import debian_root, namespaces, package_lifecycle

TOP = Path(__file__).parents[2]
VENDORED = TOP / "build" / "vendored"


def run(argv: Sequence[str | os.PathLike[str]], **more: object) -> str:
    """Return what a program prints. Raises AssertionError with it if it fails."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **more)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{argv}: {done.stdout}"
    return str(done.stdout)


@pytest.fixture(scope="module")
def debs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Both Debian packages. They are built twice, differently, and are the same byte for byte."""
    if shutil.which("dpkg-buildpackage") is None or shutil.which("dh_python3") is None:
        pytest.skip("Debian packages are built on Debian, with .ci/deb-packages")
    if not (VENDORED / ".ready").exists():
        pytest.skip("make build/vendored/.ready has not fetched what the package contains of PyPI")
    places = [tmp_path_factory.mktemp("deb"), tmp_path_factory.mktemp("another path") / "deb"]
    settings = ({"TZ": "UTC", "LANG": "C.UTF-8"}, {"TZ": "Asia/Tokyo", "LANG": "C", "USER": "somebody", "HOME": "/"})

    def build(place: Path, environment: dict[str, str], umask: int) -> list[Path]:
        argv = [TOP / "packaging" / "build-deb", place, VENDORED]
        run(argv, env={"PATH": os.environ["PATH"], **environment}, umask=umask)
        return sorted(place.glob("*.deb"))

    with ThreadPoolExecutor() as pool:
        first, second = pool.map(build, places, settings, (0o022, 0o077))
    assert [deb.name.partition("_")[0] for deb in first] == ["cockpit-vbackup", "vbackup"]
    assert [digest(deb) for deb in first] == [digest(deb) for deb in second]
    return first


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(deb: Path) -> set[str]:
    """Return the paths in a Debian package, without directories."""
    lines = run(["dpkg-deb", "--contents", deb]).splitlines()
    return {line.split(" ./", 1)[1].partition(" -> ")[0] for line in lines if not line.startswith("d")}


def below(directory: str, suffixes: Sequence[str] = ("",)) -> set[str]:
    """Return the names of the files of the sources below a directory."""
    paths = (path for path in (TOP / directory).rglob("*") if path.is_file() and path.name.endswith(tuple(suffixes)))
    return {os.fspath(path.relative_to(TOP / directory)) for path in paths}


def test_packages_contain_what_the_sources_have(debs: list[Path]) -> None:
    page, command = (contents(deb) for deb in debs)
    modules = {name for name in below("vbackup", (".py", ".json", "py.typed")) if "__pycache__" not in name}
    assert {f"usr/lib/vbackup/vbackup/{name}" for name in modules} <= command
    assert "usr/lib/vbackup/vbackup/hooks/qemu" in command
    pages = {name.removesuffix(".rst") for name in below("man")}
    assert {f"usr/share/man/man{name[-1]}/{name}.gz" for name in pages} <= command
    assert {f"usr/share/vbackup/examples/{name}" for name in below("hooks/examples")} <= command
    assert {f"usr/lib/systemd/system/{name}" for name in below("hooks/systemd")} == {
        path for path in command if "systemd/system" in path
    }
    assert not [path for path in command if path.endswith((".pyc", ".rst"))]
    there = {path.removeprefix("usr/share/cockpit/vbackup/") for path in page if "/cockpit/" in path}
    assert there == below("integrations/cockpit", (".html", ".js", ".css", ".json", ".svg"))


def test_lintian_has_no_error_for_the_packages(debs: list[Path]) -> None:
    if shutil.which("lintian") is None:
        pytest.skip("lintian is not installed")
    run(["lintian", "--allow-root", "--fail-on", "error", *debs])


@pytest.mark.skipif(namespaces.reason_not_to_enter() is not None, reason="only root can enter a root directory")
def test_debian_packages_are_installed_upgraded_removed_and_purged(debs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    root = debian_root.lay(tmp_path / "root", debs)
    (tmp_path / "older").mkdir()
    package_lifecycle.check(root, debs, [package_lifecycle.older(deb, tmp_path / "older") for deb in debs])
