"""Build the guest's kernel and initramfs of what the distribution has installed. A cached build costs nothing."""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

#: What is inserted, apart from what it depends on. ext4 is built into Debian's cloud kernel.
MODULES = ("virtio_pci", "virtio_blk", "virtio_console")
#: Where administrators' programs are, also for users whose PATH leaves that out.
PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
INIT = Path(__file__).with_name("init")
HINT = (
    "apt-get install qemu-system-x86 qemu-utils linux-image-cloud-amd64 busybox-static qemu-guest-agent cpio e2fsprogs"
)


class MissingError(Exception):
    """Something the guest is made of is not installed."""

    def __init__(self, what: str) -> None:
        super().__init__(f"The test guest needs {what}, which is not here; on Debian: {HINT}.")


@dataclass(frozen=True)
class GuestImage:
    """What QEMU boots directly."""

    kernel: Path
    initramfs: Path


def build(cache: Path, *, modules: Sequence[str] = ()) -> GuestImage:
    """Make kernel and initramfs in ``cache``, or find them there if their sources have not changed.

    ``modules`` are inserted, too. The kernel is copied: libvirt may chown and label what it boots, and /boot is not
    ours. Raises MissingError.
    """
    kernel = _newest_kernel()
    release = kernel.name[len("vmlinuz-") :]
    programs = [program("busybox"), program("qemu-ga")]
    files = _modules(Path("/lib/modules") / release, [*MODULES, *modules])
    key = _key([kernel, INIT, *programs, *files])
    cache.mkdir(parents=True, exist_ok=True)
    made = GuestImage(cache / f"vmlinuz-{key}", cache / f"initramfs-{key}.gz")
    if not made.kernel.exists():
        with _written(made.kernel) as temporary:
            shutil.copyfile(kernel, temporary)
    if not made.initramfs.exists():
        with tempfile.TemporaryDirectory(dir=cache) as root, _written(made.initramfs) as temporary:
            _fill(Path(root), programs, files)
            _pack(Path(root), temporary)
    return made


def program(name: str) -> Path:
    """Where a program is installed. Raises MissingError."""
    found = shutil.which(name, path=PATH)
    if found is None:
        raise MissingError(f"the program {name}")
    return Path(found)


def _newest_kernel() -> Path:
    kernels = sorted(Path("/boot").glob("vmlinuz-*-cloud-amd64"), key=_version)
    if not kernels:
        raise MissingError("the kernel /boot/vmlinuz-*-cloud-amd64")
    return kernels[-1]


def _version(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.name)]


def _modules(directory: Path, wanted: Sequence[str]) -> list[Path]:
    """The files of these modules and of what they need, in the order in which they can be inserted."""
    try:
        lines = (directory / "modules.dep").read_text().splitlines()
        builtin = {_module_name(line) for line in (directory / "modules.builtin").read_text().split()}
    except FileNotFoundError as err:
        raise MissingError(f"the file {err.filename}") from err
    needs = {_module_name(line.split(":")[0]): line.replace(":", "").split() for line in lines}
    order: list[Path] = []
    for name in wanted:
        if name in builtin:
            continue
        if name not in needs:
            raise MissingError(f"the kernel module {name} below {directory}")
        # modules.dep has the module, then what it needs, each before what it needs itself.
        order += [directory / rpath for rpath in reversed(needs[name]) if directory / rpath not in order]
    return order


def _module_name(rpath: str) -> str:
    return Path(rpath).name.split(".")[0].replace("-", "_")


def _key(paths: Sequence[Path]) -> str:
    """A name for just these files as they are now."""
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that becomes ``path`` if the block succeeds."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _fill(root: Path, programs: Sequence[Path], modules: Sequence[Path]) -> None:
    (root / "bin").mkdir()
    shutil.copy(INIT, root / "init")
    (root / "init").chmod(0o755)
    for path in programs:
        shutil.copy(path, root / "bin" / path.name)
        for library in _libraries(path):
            copy = root / library.relative_to("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, copy)
    (root / "modules").mkdir()
    for path in modules:
        data = path.read_bytes()
        if path.suffix == ".xz":
            data = lzma.decompress(data)
        (root / "modules" / f"{_module_name(path.name)}.ko").write_bytes(data)
    names = [f"{_module_name(path.name)}.ko\n" for path in modules]
    (root / "modules" / "order").write_text("".join(names))


def _libraries(path: Path) -> Iterator[Path]:
    """The shared libraries of a program and its loader; none if it is static."""
    done = subprocess.run(["ldd", os.fspath(path)], capture_output=True, text=True, check=False)
    for match in re.finditer(r"(?:=> |^\s+)(/\S+)", done.stdout, re.MULTILINE):
        yield Path(match[1])


def _pack(root: Path, output: Path) -> None:
    paths = "\n".join(sorted(os.fspath(path.relative_to(root)) for path in root.rglob("*")))
    argv = [os.fspath(program("cpio")), "--create", "--format=newc", "--owner=0:0", "--quiet"]
    packed = subprocess.run(argv, cwd=root, input=paths.encode(), stdout=subprocess.PIPE, check=True).stdout
    with output.open("wb") as file:
        subprocess.run(["gzip", "-1"], input=packed, stdout=file, check=True)
