"""The Debian packages, the RPM packages and the wheel: built from the sources as they lie here, and used.

Everything is built here without a network. What PyPI has to give for the Debian package, ``make build/vendored/.ready``
fetches, as ``make check`` does.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import vbackup
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


def package() -> set[str]:
    """Return the names of the files of vbackup itself."""
    return {f"vbackup/{name}" for name in below("vbackup") if "__pycache__" not in name}


def test_packages_contain_what_the_sources_have(debs: list[Path]) -> None:
    page, command = (contents(deb) for deb in debs)
    assert {f"usr/lib/vbackup/{name}" for name in package()} <= command
    pages = {name.removesuffix(".rst") for name in below("man")}
    assert {f"usr/share/man/man{name[-1]}/{name}.gz" for name in pages} <= command
    shells = ("bash-completion/completions/vbackup", "zsh/vendor-completions/_vbackup")
    assert {f"usr/share/{name}" for name in (*shells, "fish/vendor_completions.d/vbackup.fish")} <= command
    assert {f"usr/share/vbackup/examples/{name}" for name in below("hooks/examples")} <= command
    units = {name if "/" in name else f"system/{name}" for name in below("hooks/systemd")}
    assert {f"usr/lib/systemd/{name}" for name in units} == {path for path in command if "/systemd/" in path}
    assert not [path for path in command if path.endswith((".pyc", ".rst"))]
    names = below("integrations/cockpit", (".html", ".js", ".css", ".json", ".py"))
    there = {path.removesuffix(".gz") for path in page if "/cockpit/" in path}
    assert there == {f"usr/share/cockpit/vbackup/{name}" for name in names}


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


@pytest.fixture(scope="module")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Both RPM packages. What they need for the build is here under Debian's names, which rpmbuild does not know."""
    if shutil.which("rpmbuild") is None:
        pytest.skip("rpmbuild is not installed")
    if subprocess.run(["/usr/bin/python3", "-c", "import docutils"], capture_output=True, check=False).returncode:
        pytest.skip("the system's Python has no docutils for the man pages")
    place = tmp_path_factory.mktemp("rpm")
    run([TOP / "packaging" / "build-rpm", place])
    return sorted(place.glob("*.rpm"))


def test_rpm_packages_contain_what_the_debian_ones_do(rpms: list[Path], debs: list[Path]) -> None:
    def listed(rpm: Path) -> set[str]:
        return {path.lstrip("/") for path in run(["rpm", "--query", "--list", "--package", rpm]).splitlines()}

    page, command = (listed(rpm) for rpm in rpms)
    # Each has its own places for documents, for the licence, and for what is not among its packages.
    theirs = re.compile("usr/(share/(doc|python3|lintian|zsh)|lib/vbackup/qemu)")
    same = {path.removesuffix(".gz") for path in contents(debs[1]) if not theirs.match(path)}
    assert same <= {path.removesuffix(".gz") for path in command}
    assert {path for path in contents(debs[0]) if not path.startswith("usr/share/doc/")} <= page
    needed = set(re.findall(r"^python3dist\((\S+)\)", run(["rpm", "-qp", "--requires", rpms[1]]), re.MULTILINE))
    assert needed == {name.replace(".", "-") for name in package_lifecycle.required()}


def test_rpm_package_stops_its_timers_on_removal_and_not_on_an_upgrade(rpms: list[Path], tmp_path: Path) -> None:
    told, helper = tmp_path / "told", tmp_path / "systemd-update-helper"
    for program in (tmp_path / "systemctl", helper):
        program.write_text(f'#!/bin/sh\necho "${{0##*/}} $*" >> {told}\n')
        program.chmod(0o755)
    sections: dict[str, str] = {}
    for part in re.split(r"(?m)^(?=\w+ scriptlet)", run(["rpm", "-qp", "--scripts", rpms[1]]))[1:]:
        name, text = part.split(" ", 1)[0], part.split("\n", 1)[1]
        assert "%" not in text, "a macro that nobody has"
        text = text.replace("/usr/lib/systemd/systemd-update-helper", str(helper))
        sections[name] = text.replace("/run/systemd/system", str(tmp_path))

    def said(name: str, instances: int) -> list[str]:
        told.write_text("")
        run(["env", f"PATH={tmp_path}:{os.environ['PATH']}", "sh", "-ec", sections[name], "sh", str(instances)])
        return told.read_text().splitlines()

    units = "vbackup@.service vbackup@.timer vbackup-boot@.timer"
    assert said("postinstall", 1) == [
        f"systemd-update-helper install-system-units {units}",
        "systemd-update-helper install-user-units vbackup@.service",
    ]
    assert said("postinstall", 2) == said("preuninstall", 1) == []
    timers = "vbackup@.timer vbackup-boot@.timer"
    assert said("preuninstall", 0) == [
        "systemctl stop vbackup@*.timer vbackup-boot@*.timer",
        f"systemd-update-helper remove-system-units {timers}",
        "systemd-update-helper remove-user-units vbackup@.service",
    ]
    assert said("postuninstall", 0) == ["systemctl daemon-reload"]


def test_rpmlint_has_no_error_for_the_spec_and_the_packages(rpms: list[Path]) -> None:
    if shutil.which("rpmlint") is None:
        pytest.skip("rpmlint is not installed")
    run(["rpmlint", TOP / "packaging" / "rpm" / "vbackup.spec"])
    done = subprocess.run(["rpmlint", *rpms], capture_output=True, text=True, check=False)
    errors = set(re.findall(r" E: (\S+)", done.stdout))
    # A distribution signs packages and names itself in them; groups are of old distributions. That vbackup.toml.5 is a
    # page of section 5, rpmlint does not see, as the name has a dot.
    assert errors <= {"no-signature", "no-packager-tag", "no-group-tag", "bad-manual-page-folder"}, done.stdout
    assert re.findall(r"bad-manual-page-folder (\S+)", done.stdout) == ["/usr/share/man/man5/vbackup.toml.5"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    run([TOP / "packaging" / "build-wheel", place, sys.executable])
    (built,) = place.glob("*.whl")
    return built


@pytest.fixture
def from_here(wheel: Path) -> dict[str, str]:
    """The environment in which pip has only the wheel, what ``make`` has fetched, and the system's packages."""
    if not (VENDORED / ".ready").exists():
        pytest.skip("make build/vendored/.ready has not fetched qemu.qmp")
    if run(["/usr/bin/python3", "-I", TOP / ".ci" / "missing-requirements"]).split() not in ([], ["qemu.qmp>=0.0.3"]):
        pytest.skip("the system's Python lacks more than qemu.qmp")
    return {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": f"{wheel.parent} {VENDORED}", "PYTHONPATH": ""}


def test_wheel_has_all_files_and_the_man_pages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = archive.namelist()
    pages = {f"share/man/man{name[-1]}/{name}" for name in (name.removesuffix(".rst") for name in below("man"))}
    assert {name for name in members if name.startswith("vbackup/")} == package()
    assert {name.partition(".data/data/")[2] for name in members if ".data/data/" in name} == pages
    assert not [name for name in members if name.startswith(("tests", "hooks", "build"))]
    assert wheel.name.endswith("-py3-none-any.whl")


def test_wheel_is_installed_by_pip(tmp_path: Path, from_here: dict[str, str]) -> None:
    environment = tmp_path / "environment"
    run(["/usr/bin/python3", "-m", "venv", "--system-site-packages", environment], env=from_here)
    run([environment / "bin" / "pip", "install", "--quiet", "vbackup"], env=from_here)
    use(environment / "bin" / "vbackup", tmp_path)
    assert (environment / "share/man/man1/vbackup.1").exists()
    program = "import vbackup.api, qemu.qmp; print(vbackup.api.__file__)"
    shown = run([environment / "bin" / "python", "-I", "-c", program]).strip()
    assert Path(shown).is_relative_to(environment)


@pytest.mark.long
def test_wheel_is_installed_by_pipx(tmp_path: Path, wheel: Path, from_here: dict[str, str]) -> None:
    if shutil.which("pipx") is None:
        pytest.skip("pipx is not installed")
    places = {"PIPX_HOME": f"{tmp_path}/home", "PIPX_BIN_DIR": f"{tmp_path}/bin", "PIPX_MAN_DIR": f"{tmp_path}/man"}
    environment = {**from_here, **places, "PIPX_DEFAULT_PYTHON": "/usr/bin/python3"}
    run(["pipx", "install", "--system-site-packages", wheel], env=environment)
    use(tmp_path / "bin" / "vbackup", tmp_path)
    run(["pipx", "uninstall", "vbackup"], env=environment)
    assert not (tmp_path / "bin" / "vbackup").exists()


def use(command: Path, directory: Path) -> None:
    """What the installed command does without a hypervisor."""
    (directory / "etc" / "libvirt").mkdir(parents=True)
    for arguments, said in (
        (["--version"], f"vbackup {vbackup.__version__}"),
        (["schema", "backup"], '"vbackup.backup/1"'),
        (["hooks", "install", "--root", directory], "50-vbackup"),
        (["init", "-r", directory / "repository"], "Repository "),
    ):
        assert said in run([command, *arguments], cwd=directory)
    hook = next(path for path in directory.rglob("50-vbackup") if path.is_file())
    assert os.access(hook, os.X_OK)
