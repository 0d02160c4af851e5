"""What the Debian packages promise from their installation to their purge, checked in a clean root directory.

``test_packages.py`` does it in one that ``debian_root`` has laid. ``make check-stacks`` does it in one that debootstrap
has made, and lets apt find there first what the packages depend on: ``python -m tests.package_lifecycle ROOT DEB...``
"""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.debian_root import Root

TOP = Path(__file__).parents[1]
#: The version from which is upgraded, and a file that only this version has.
OLDER = "0.0.9-1"
GONE = "usr/lib/vbackup/vbackup/gone.py"

_OLD_REPOSITORY = TOP / "tests/fixtures/old"
_BYTE_CODE = re.compile(r"__pycache__")
#: Imports every module, and prints the names of what is missing.
_IMPORT_ALL = """
import importlib, pkgutil, sys
sys.path.insert(0, "/usr/lib/vbackup")
import vbackup
for module in pkgutil.walk_packages(vbackup.__path__, "vbackup."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as err:
            print(err.name.partition(".")[0])
"""


def older(deb: Path, directory: Path) -> Path:
    """Return this package as its predecessor might have been: of a lower version, with one file more."""
    tree = directory / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", os.fspath(deb), os.fspath(tree)], check=True)
    control = tree / "DEBIAN" / "control"
    text = control.read_text()
    version = re.findall(r"^Version: (.*)$", text, re.MULTILINE)[0]
    text = text.replace(f"Version: {version}", f"Version: {OLDER}").replace(f"(= {version})", f"(= {OLDER})")
    control.write_text(text)
    if (tree / GONE).parent.is_dir():
        (tree / GONE).write_text("# The next version has no such module.\n")
    made = directory / deb.name.replace(f"_{version}_", f"_{OLDER}_")
    argv = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", os.fspath(tree), os.fspath(made)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
    return made


def check(root: Root, debs: Sequence[Path], olds: Sequence[Path]) -> None:
    """Install the older packages, upgrade, use, remove and purge. Raises AssertionError at the first broken promise.

    ``root`` has all that they depend on.
    """
    names = [deb.name.partition("_")[0] for deb in debs]
    before = root.files()

    _unpack(root, olds)
    assert _versions(root, names) == {OLDER}
    assert (root.path / GONE).exists()
    root.run(["vbackup", "init", "-r", "/srv/backup"])
    shutil.copytree(_OLD_REPOSITORY / "repository", root.path / "var/lib/vbackup/repository")
    made_by_hand = _administrate(root)

    _unpack(root, debs)
    assert _versions(root, names) == {_version(debs[0])}
    assert not (root.path / GONE).exists()
    assert root.run(["dpkg", "--audit"]).stdout == ""
    assert root.run(["dpkg", "--verify", *names]).stdout == ""
    assert not (root.path / "etc/libvirt/hooks").exists()  # "vbackup hooks install" does that
    assert not list((root.path / "etc").glob("systemd/system/*.wants/vbackup*"))
    _works(root)

    kept = {path: root.files()[path] for path in _data(root)}
    root.run(["dpkg", "--remove", *names])
    left = _differences(before, root.files())
    assert left == made_by_hand | _conffiles(debs) | kept.keys(), "a removal leaves configuration and data only"

    root.run(["dpkg", "--purge", *names])
    after = root.files()
    assert _differences(before, after) == kept.keys(), "a purge leaves data only"
    assert {path: after[path] for path in kept} == kept


def _unpack(root: Root, debs: Sequence[Path]) -> None:
    for deb in debs:
        shutil.copy(deb, root.path / "tmp")
    root.run(["dpkg", "--force-unsafe-io", "--install", *(f"/tmp/{deb.name}" for deb in debs)])
    for deb in debs:
        (root.path / "tmp" / deb.name).unlink()


def _version(deb: Path) -> str:
    argv = ["dpkg-deb", "--field", os.fspath(deb), "Version"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def _versions(root: Root, names: Sequence[str]) -> set[str]:
    shown = root.run(["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Version}\n", *names]).stdout
    assert all(line.startswith("installed ") for line in shown.splitlines()), shown
    return {line.partition(" ")[2] for line in shown.splitlines()}


def _conffiles(debs: Sequence[Path]) -> set[str]:
    """Return the paths that a removal leaves and a purge does not, with their directories."""
    found = set()
    for deb in debs:
        shown = subprocess.run(["dpkg-deb", "--info", deb, "conffiles"], capture_output=True, text=True, check=False)
        for path in shown.stdout.split():
            found |= {path.lstrip("/"), *(os.fspath(parent).lstrip("/") for parent in Path(path).parents)}
    return found - {"", "etc"}


def _administrate(root: Root) -> set[str]:
    """Leave what a vbackup in use leaves beside data, and return the paths: a removal leaves it, a purge does not."""
    cache = root.path / "var/cache/vbackup/copies"
    cache.mkdir(parents=True)
    (cache / "manifest.json").write_text("{}")
    events = root.path / "var/lib/vbackup/events"
    events.mkdir()
    (events / "domain.log").write_text("{}\n")
    download = root.path / "var/lib/vbackup/cockpit/20261130T020000Z-01234567/result"
    download.parent.mkdir(parents=True)
    download.write_text("a file of a guest\n")
    (root.path / "var/lib/vbackup/sessions").mkdir()
    scripts = root.path / "etc/vbackup/scripts.d"
    scripts.mkdir(parents=True, exist_ok=True)
    paths = (cache / "manifest.json", events / "domain.log", download, root.path / "var/lib/vbackup/sessions", scripts)
    inside = {path.relative_to(root.path) for path in paths}
    made = (
        inside
        | {path.parent for path in inside}
        | {Path("etc/vbackup"), Path("var/cache/vbackup"), Path("var/lib/vbackup/cockpit")}
    )
    return {os.fspath(path) for path in made}


def _data(root: Root) -> set[str]:
    """Return what of the repositories there is in ``Root.files``, with the directory that has one."""
    found = {"var/lib/vbackup"}
    for top in ("srv/backup", "var/lib/vbackup/repository"):
        for directory, names, files in os.walk(root.path / top):
            place = Path(directory).relative_to(root.path)
            found |= {os.fspath(place), *(os.fspath(place / name) for name in (*names, *files))}
    return found


def _differences(before: dict[str, tuple[int, str]], after: dict[str, tuple[int, str]]) -> set[str]:
    """Return what is not as it was. Byte code of Python's own modules is any program's."""
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    return {path for path in changed if not _BYTE_CODE.search(path) or "vbackup" in path}


def _works(root: Root) -> None:
    """What the command and the library do where there is nothing but what the packages depend on."""
    missing = set(root.run(["python3", "-I", "-c", _IMPORT_ALL]).stdout.split())
    assert missing <= _optional(), f"no dependency of the package: {missing - _optional()}"
    assert "50-vbackup" in root.run(["vbackup", "hooks", "status"]).stdout
    assert '"vbackup.backup/1"' in root.run(["vbackup", "schema", "backup"]).stdout
    repository = "/var/lib/vbackup/repository"
    root.run(["vbackup", "list", "-r", "/srv/backup"])
    contents = json.loads((_OLD_REPOSITORY / "contents.json").read_text())
    backup_id, digests = next(iter(contents.items()))
    output = root.path / "srv/restored"
    argv = ["--backup", backup_id, "--output", "/srv/restored", "--format", "raw"]
    root.run(["vbackup", "-q", "restore", "web", "-r", repository, *argv])
    for dev, digest in digests.items():
        assert hashlib.sha256((output / f"{dev}.raw").read_bytes()).hexdigest() == digest
    shutil.rmtree(output)


def required() -> set[str]:
    """Return the distributions without which vbackup does not work on any Python."""
    return _names(re.sub(".*;.*", "", _setup()["options"]["install_requires"]))


def _optional() -> set[str]:
    """Return the modules of the extras: a package does not depend on them."""
    extras = {name: text for name, text in _setup()["options.extras_require"].items() if name != "test"}
    return {name.replace("-", "_") for text in extras.values() for name in _names(text)}


def _setup() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(TOP / "setup.cfg")
    return config


def _names(requirements: str) -> set[str]:
    lines = (line.partition("#")[0].strip() for line in requirements.splitlines())
    return {re.split("[>=<; ]", line)[0] for line in lines if line}


def main() -> None:
    """Let apt install the packages, with what they depend on, and take them through their life."""
    root, debs = Root(Path(sys.argv[1])), [Path(name) for name in sys.argv[2:]]
    for deb in debs:
        shutil.copy(deb, root.path / "tmp")
    paths = [f"/tmp/{deb.name}" for deb in debs]
    root.run(["apt-get", "--quiet=2", "update"])
    root.run(["apt-get", "--quiet=2", "--yes", "--no-install-recommends", "install", *paths])
    version = root.run(["vbackup", "--version"]).stdout.strip()
    root.run(["dpkg", "--purge", *(deb.name.partition("_")[0] for deb in debs)])
    for path in paths:
        (root.path / path.lstrip("/")).unlink()
    with tempfile.TemporaryDirectory() as directory:
        check(root, debs, [older(deb, Path(directory)) for deb in debs])
    print(f"{version}: installed by apt, upgraded, removed and purged in {root.path}")


if __name__ == "__main__":
    main()
