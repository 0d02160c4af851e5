"""The packages' own files beside setup.cfg: one version, and the same requirements everywhere."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import vbackup

TOP = Path(__file__).parents[2]
CONTROL = (TOP / "packaging/debian/control").read_text()
SPEC = (TOP / "packaging/rpm/vbackup.spec").read_text()
#: Where Debian's name is not python3-NAME. None: no package has it before Debian 14 (vendored.txt).
DEBIAN = {"libvirt-python": "python3-libvirt", "qemu.qmp": None}


def requirements() -> list[str]:
    config = configparser.ConfigParser()
    config.read(TOP / "setup.cfg")
    lines = (line.partition("#")[0].strip() for line in config["options"]["install_requires"].splitlines())
    return [line for line in lines if line]


def required() -> dict[str, str]:
    """The least version of each distribution that vbackup needs on any Python."""
    return {line.partition(">=")[0]: line.partition(">=")[2] for line in requirements() if ";" not in line}


def field(name: str) -> list[str]:
    """The clauses of a field of the package vbackup."""
    paragraph = next(text for text in CONTROL.split("\n\n") if text.startswith("Package: vbackup\n"))
    match = re.search(rf"^{name}:\n((?: .*\n)+)", paragraph, re.M)
    assert match is not None
    return [line.strip().rstrip(",") for line in match[1].splitlines()]


def test_all_packages_have_the_version_of_the_sources() -> None:
    changelog = (TOP / "packaging/debian/changelog").read_text()
    assert re.findall(r"^vbackup \((.+)-\d+\)", changelog, re.M)[0] == vbackup.__version__
    assert re.findall(r"^Version: +(\S+)", SPEC, re.M) == [vbackup.__version__]
    assert re.findall(r"^\* .* - (\S+)-\d+$", SPEC, re.M)[0] == vbackup.__version__
    assert re.findall(r"^## (\S+)", (TOP / "CHANGELOG.md").read_text(), re.M)[0] == vbackup.__version__


def test_debian_package_depends_on_what_setup_cfg_requires() -> None:
    depends = field("Depends")
    for name, least in required().items():
        package = DEBIAN.get(name, f"python3-{name}")
        if package is not None:
            assert f"{package} (>= {least})" in depends
    lines = (TOP / "packaging/vendored.txt").read_text().splitlines()
    vendored = [line.partition("==")[0] for line in lines if not line.startswith("#")]
    assert vendored == [name for name in required() if DEBIAN.get(name, name) is None]


def test_vendored_files_are_named_by_version_and_digest() -> None:
    lines = (TOP / "packaging/vendored.txt").read_text().splitlines()
    for line in lines:
        assert line.startswith("#") or re.fullmatch(r"[a-z.]+==[0-9.]+ --hash=sha256:[0-9a-f]{64}", line)


def test_rpm_package_requires_what_setup_cfg_requires() -> None:
    spec = dict(re.findall(r"^Requires: +python3dist\((\S+)\) >= (\S+)", SPEC, re.M))
    assert spec == {name.replace(".", "-"): least for name, least in required().items()}
    # Debian has had no older Python since Debian 12.
    for line in requirements():
        name, least, older_than = (re.findall(r'^(.+)>=(\S+); python_version < "(.*)"$', line) or [("", "", "")])[0]
        assert not name or f"Requires:       (python3dist({name}) >= {least} if python3 < {older_than})" in SPEC


def test_packages_name_what_make_install_installs() -> None:
    lines = (TOP / ".ci/run-time-packages").read_text().splitlines()
    words = (line.partition("#")[0].strip().rstrip("?") for line in lines)
    for_make = {"python3", "python3-venv", "python3-docutils", "python3-qemu-qmp"}
    named = {clause.partition(" ")[0] for clause in field("Depends") + field("Recommends")}
    assert {word for word in words if word} - for_make <= named


def test_libvirts_hook_is_left_to_the_administrator() -> None:
    for path in (TOP / "packaging").rglob("*"):
        if path.is_file() and path.name != "vbackup.README.Debian":
            assert "hooks install" not in path.read_text(), path
