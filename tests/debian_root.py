"""A root directory with nothing of Debian but what packages depend on, for tests of these packages.

It is laid from the packages that are installed here: the files of the essential ones and of all that the packages under
test depend on, and what dpkg knows of them. So it needs no network and a few seconds, where debootstrap takes a minute;
and what no dependency names is missing in it, as on a machine that has nothing else. ``make check-stacks`` uses a root
that debootstrap has made, with apt.

A command in it (``Root.run``) has mounts and processes of its own, which end with it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: What packages made when they were installed here: no package contains it.
_MADE = ("etc/alternatives", "etc/ld.so.cache", "etc/passwd", "etc/group", "etc/shells", "usr/bin/awk", "usr/bin/which")
#: Not needed to install a package or to run it.
_LEFT_OUT = re.compile(r"/usr/share/(doc|man|locale|info|i18n|zoneinfo|common-licenses)/")
_RECORDS = ("var/lib/dpkg/info", "var/lib/dpkg/triggers", "var/lib/dpkg/updates")
_ALIASES = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_MOUNTS = 'mount -t proc proc proc && mount --rbind /dev dev && mount -t tmpfs tmpfs run && exec chroot . "$@"'


@dataclass(frozen=True)
class Installed:
    """A package that is installed here."""

    name: str  #: with the architecture: libc6:amd64
    stanza: str
    is_essential: bool
    depends: tuple[tuple[str, ...], ...]  #: names of alternatives


@dataclass(frozen=True)
class Root:
    """A root directory of Debian."""

    path: Path

    def run(self, argv: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in it. Raises AssertionError with its output if it fails, and ``check`` is true."""
        done = subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _MOUNTS, "sh", *argv],
            cwd=self.path,
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": "/root",
                "LANG": "C.UTF-8",
                "DEBIAN_FRONTEND": "noninteractive",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, f"{argv}: status {done.returncode}: {done.stdout}"
        return done

    def files(self) -> dict[str, tuple[int, str]]:
        """Return mode and content (size, or where a link leads) of all files, without dpkg's and apt's own records."""
        found = {}
        for directory, names, files in os.walk(self.path):
            place = Path(directory).relative_to(self.path)
            if os.fspath(place) in ("proc", "dev", "run", "var/lib/dpkg", "var/lib/apt", "var/cache/apt", "var/log"):
                names.clear()
                continue
            for name in (*names, *files):
                path = Path(directory, name)
                what = path.lstat()
                content = str(path.readlink()) if path.is_symlink() else "" if path.is_dir() else str(what.st_size)
                found[os.fspath(place / name)] = (what.st_mode, content)
        return found


def lay(root: Path, debs: Sequence[Path]) -> Root:
    """Lay a root directory for these packages, without them, and return it.

    Raises AssertionError if they depend on what is not installed here.
    """
    installed = _installed()
    chosen = _closure(installed, [dependency for deb in debs for dependency in _depends_of(deb)], debs)
    for directory in ("proc", "dev", "run", "tmp", "root", "srv", *_RECORDS):
        (root / directory).mkdir(parents=True)
    for name in _ALIASES:
        if Path("/", name).is_symlink():
            (root / name).symlink_to(Path("/", name).readlink())
    _copy(_paths(chosen), root)
    _record(chosen, root / "var/lib/dpkg")
    return Root(root)


def _record(packages: Sequence[Installed], place: Path) -> None:
    """Write down for dpkg that these packages are installed."""
    here = Path("/var/lib/dpkg")
    names = {package.name.partition(":")[0] for package in packages}
    for path in (here / "info").iterdir():
        if path.name == "format" or path.name.rpartition(".")[0].partition(":")[0] in names:
            shutil.copy2(path, place / "info")
    for path in (here / "triggers").iterdir():
        if path.name not in ("Lock", "Unincorp"):
            lines = path.read_text().splitlines(keepends=True)
            kept = (line for line in lines if re.split("[:/]", line.split()[-1])[0] in names)
            (place / "triggers" / path.name).write_text("".join(kept))
    (place / "status").write_text("\n".join(package.stanza for package in packages))
    (place / "available").touch()
    (place / "triggers" / "Unincorp").touch()  # without it, dpkg activates every trigger that there is


def _installed() -> dict[str, list[Installed]]:
    """Return the packages by each name that they have or provide."""
    found: dict[str, list[Installed]] = {}
    for stanza in Path("/var/lib/dpkg/status").read_text().strip().split("\n\n"):
        fields = dict(re.findall(r"^(\S+): (.*)$", stanza, re.MULTILINE))
        if not fields["Status"].endswith(" installed"):
            continue
        package = Installed(
            f"{fields['Package']}:{fields['Architecture']}",
            f"{stanza}\n",
            fields.get("Essential") == "yes",
            _relations(f"{fields.get('Pre-Depends', '')},{fields.get('Depends', '')}"),
        )
        provided = (alternatives[0] for alternatives in _relations(fields.get("Provides", "")))
        for known_as in (fields["Package"], *provided):
            found.setdefault(known_as, []).append(package)
    return found


def _relations(text: str) -> tuple[tuple[str, ...], ...]:
    """Return the names in ``a (>= 1) | b, c:any``: the alternatives of each."""
    clauses = (clause for clause in text.split(",") if clause.strip())
    return tuple(tuple(re.split(r"[\s(:\[]", one.strip())[0] for one in clause.split("|")) for clause in clauses)


def _depends_of(deb: Path) -> tuple[tuple[str, ...], ...]:
    argv = ["dpkg-deb", "--field", os.fspath(deb), "Depends"]
    return _relations(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)


def _closure(
    installed: Mapping[str, list[Installed]], wanted: Sequence[tuple[str, ...]], debs: Sequence[Path]
) -> list[Installed]:
    own = {deb.name.partition("_")[0] for deb in debs}
    essential = [package for packages in installed.values() for package in packages if package.is_essential]
    chosen: dict[str, Installed] = {}
    waiting = deque([*((package.name.partition(":")[0],) for package in essential), ("dpkg",), *wanted])
    while waiting:
        alternatives = waiting.popleft()
        if own & set(alternatives):
            continue
        there = [package for name in alternatives for package in installed.get(name, ())]
        assert there, f"{' | '.join(alternatives)} is not installed here, and the packages depend on it"
        if not any(package.name in chosen for package in there):
            chosen[there[0].name] = there[0]
            waiting.extend(there[0].depends)
    return list(chosen.values())


def _paths(packages: Sequence[Installed]) -> Iterator[str]:
    """Yield what the packages contain, below the directories in which it lies where /bin is a link to /usr/bin."""
    argv = ["dpkg-query", "--listfiles", *(package.name for package in packages)]
    listed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    places: dict[str, str] = {}
    seen = set()
    for path in listed:
        if not path.startswith("/") or _LEFT_OUT.match(path) or path[1:] in _ALIASES:
            continue
        directory, name = os.path.split(path)
        if directory not in places:
            places[directory] = os.path.realpath(directory)
        real = f"{places[directory]}/{name}"
        if real not in seen and os.path.lexists(real):
            seen.add(real)
            yield real.lstrip("/")
    yield from (path for path in _MADE if os.path.lexists(Path("/", path)))
    yield from (os.fspath(path).lstrip("/") for path in Path("/etc/alternatives").iterdir())


def _copy(paths: Iterator[str], root: Path) -> None:
    listed = "\0".join(path for path in paths if path)
    with contextlib.ExitStack() as stack:
        sender = stack.enter_context(
            subprocess.Popen(
                ["tar", "--create", "--directory=/", "--null", "--no-recursion", "--files-from=-"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        receiver = stack.enter_context(
            subprocess.Popen(
                ["tar", "--extract", "--preserve-permissions", "--keep-directory-symlink", f"--directory={root}"],
                stdin=sender.stdout,
            )
        )
        assert sender.stdin is not None
        assert sender.stdout is not None
        sender.stdout.close()
        sender.stdin.write(os.fsencode(listed))
        sender.stdin.close()
        assert (receiver.wait(), sender.wait()) == (0, 0)
