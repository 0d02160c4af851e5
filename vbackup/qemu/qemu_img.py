"""Run qemu-img: create target images, read headers, convert a backing chain into one image.

Formats are always given, so nothing is probed. Paths are absolute, so no part of a name is taken for a protocol. The
working directory is "/": QEMU looks there for a relative data file. If vbackup dies in any way, the kernel kills its
qemu-img (PR_SET_PDEATHSIG), so that nothing goes on writing; the thread that starts it waits for its end.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from vbackup.errors import ChainError, NoSpaceError, QemuText, StorageError
from vbackup.fields import Fields
from vbackup.model import CLUSTER_BYTES, BlockDriver, Compression, ImageFormat, ImageOptions
from vbackup.process import refuse_lost_ends
from vbackup.stop import Stop

_PROGRAM = ("setpriv", "--pdeathsig", "KILL", "--", "qemu-img")
_PROGRESS = re.compile(rb"\(([0-9.]+)/100%\)")


class Output(Enum):
    """What an image is written to."""

    NEW = "a file that does not exist yet"
    FILE = "an existing file, whose content is replaced"
    DEVICE = "a block device, which may be larger, and whose old content may be anything"


@dataclass(frozen=True)
class Header:
    """The backing file that the header of an image names (QAPI ImageInfo)."""

    backing_file: str | None
    backing_format: BlockDriver | None


def create(path: Path, size_bytes: int, *, backing_rpath: str | None, options: ImageOptions) -> None:
    """Create an empty qcow2 image of ``size_bytes`` at ``path``; the file exists and is empty.

    ``backing_rpath`` goes into the header as the backing file, unopened. Raises NoSpaceError if the filesystem is
    full, StorageError if qemu-img fails otherwise.
    """
    argv = ["create", "-q", "-f", "qcow2", "-o", f"cluster_size={options.cluster_bytes}"]
    if options.compression is not Compression.NONE:
        argv += ["-o", f"compression_type={options.compression.value}"]
    if backing_rpath is not None:
        argv += ["-u", "-b", backing_rpath, "-F", "qcow2"]
    _run([*argv, os.fspath(path.absolute()), str(size_bytes)], f"create the image {path}")


def create_over(path: Path, size_bytes: int, *, backing: str) -> None:
    """Create an empty qcow2 image of ``size_bytes`` at ``path``; the file exists and is empty.

    ``backing`` is a name or URI of QEMU's of a raw image below it, which is not opened. Errors as for ``create``.
    """
    argv = ["create", "-q", "-f", "qcow2", "-u", "-b", backing, "-F", "raw"]
    _run([*argv, os.fspath(path.absolute()), str(size_bytes)], f"create the image {path}")


def create_in(fd: int, size_bytes: int, *, what: str) -> None:
    """Create an empty qcow2 image of ``size_bytes`` in the open file ``fd``, which needs no name.

    ``what`` completes "Cannot ..." in the errors, which are those of ``create``.
    """
    argv = ["create", "-q", "-f", "qcow2", f"/proc/self/fd/{fd}", str(size_bytes)]
    _run(argv, what, pass_fds=(fd,))


def create_inside(inner_fd: int, outer_fd: int, inner_bytes: int, outer_bytes: int, *, what: str) -> None:
    """Create an empty qcow2 image of ``inner_bytes`` whose file is the content of another one of ``outer_bytes``.

    The outer image is in the open file ``outer_fd``; ``inner_fd`` is an empty file for the while. All that the inner
    image consists of is allocated in the outer one. ``what`` completes "Cannot ..." in the errors, which are those of
    ``create``.
    """
    create_in(inner_fd, inner_bytes, what=what)
    size_bytes = os.fstat(inner_fd).st_size
    os.ftruncate(inner_fd, -(-size_bytes // CLUSTER_BYTES) * CLUSTER_BYTES)
    create_in(outer_fd, outer_bytes, what=what)
    inner, outer = (f"/proc/self/fd/{fd}" for fd in (inner_fd, outer_fd))
    _run(["convert", "-n", "-S", "0", "-f", "raw", "-O", "qcow2", inner, outer], what, pass_fds=(inner_fd, outer_fd))


def header(path: Path, *, image_format: BlockDriver) -> Header:
    """Read the header of an image that another process may be writing. Its backing file is not opened.

    Raises ChainError if the image cannot be read as ``image_format``.
    """
    argv = [*_program(), "info", "-f", image_format.name, "--output=json", "-U", os.fspath(path.absolute())]
    result = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, check=False, cwd="/")
    if result.returncode != 0:
        raise ChainError(f"The image {path} cannot be read: {_last_line(result.stderr)}.")
    fields = Fields(json.loads(result.stdout), f"qemu-img info {path}", ChainError)
    backing_format = fields.optional_text("backing-filename-format")
    return Header(
        backing_file=fields.optional_text("backing-filename"),
        backing_format=None if backing_format is None else BlockDriver(backing_format),
    )


def convert(
    layers: Sequence[Path],
    output: Path,
    image_format: ImageFormat,
    *,
    kind: Output = Output.NEW,
    salvage: bool = False,
    speed_bytes_s: int | None = None,
    stop: Stop,
    progress: Callable[[float], None],
) -> None:
    """Write the content of a backing chain into one image; ``layers`` has the oldest first. A new one has mode 0600.

    Each layer is opened by its path; backing files in the headers are ignored. ``salvage``: what cannot be read becomes
    zeros, for a caller that checks the output. ``progress`` is called with the percentage. Raises NoSpaceError,
    StorageError, or InterruptedBySignalError after killing qemu-img.
    """
    if kind is Output.NEW:
        os.close(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    argv = [*_program(), "convert", "-p", "-W", "-m", "8", "-O", image_format.value]
    argv += ["--salvage"] if salvage else []
    argv += [f"-r{speed_bytes_s}"] if speed_bytes_s is not None else []
    argv += ["-n"] if kind is Output.DEVICE else []  # which then writes zeros too
    argv += [_chain(layers), os.fspath(output.absolute())]
    _convert(argv, f"copy {layers[-1]} to {output}", stop, progress)


def copy_export(
    source: str,
    target: str,
    *,
    speed_bytes_s: int | None = None,
    what: str,
    stop: Stop,
    progress: Callable[[float], None],
) -> None:
    """Copy one export to another one of the same size, which reads as zeros; both are NBD URIs.

    ``what`` completes "Cannot ..." in the errors, which are those of ``convert``.
    """
    argv = [*_program(), "convert", "-p", "-W", "-m", "8", "-n", "--target-is-zero", "-f", "raw", "-O", "raw"]
    argv += [f"-r{speed_bytes_s}"] if speed_bytes_s is not None else []
    _convert([*argv, source, target], what, stop, progress)


def _convert(argv: Sequence[str], what: str, stop: Stop, progress: Callable[[float], None]) -> None:
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        cwd="/",
    ) as process:
        try:
            errors = _follow(process, stop, progress)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        _raise(errors, what)


def copy_bytes(url: str, output: Path, *, max_bytes: int, timeout_s: float) -> None:
    """Copy all bytes of a small export, which another process may have open, to a new file.

    They are not looked at: if they are an image that names other files, none of these is opened. Raises StorageError,
    also if the export is larger than ``max_bytes`` or takes longer than that.
    """
    try:
        info = _small(["info", "-U", "--output=json", "-f", "raw", url], url, timeout_s=timeout_s)
        size_bytes = Fields(json.loads(info), f"qemu-img info {url}", StorageError).integer("virtual-size")
        if size_bytes > max_bytes:
            raise StorageError(f"Cannot copy {url}: it has {size_bytes} bytes, which is more than {max_bytes}.")
        argv = ["convert", "-U", "-f", "raw", "-O", "raw", url, os.fspath(output.absolute())]
        _small(argv, url, timeout_s=timeout_s)
    except subprocess.TimeoutExpired as err:
        raise StorageError(f"Cannot copy {url}: it does not answer.") from err


def _small(argv: Sequence[str], name: str, *, timeout_s: float) -> bytes:
    """Run qemu-img for a moment, and return what it prints."""
    result = subprocess.run(
        [*_program(), *argv],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
        cwd="/",
        timeout=timeout_s,
        umask=0o077,
    )
    if result.returncode != 0:
        _raise(result.stderr, f"copy {name}")
    return result.stdout


def _chain(layers: Sequence[Path]) -> str:
    """Return the json: file name of the newest layer, with the older ones nested (QAPI BlockdevOptionsQcow2)."""
    options: dict[str, Any] | None = None
    for path in layers:
        file = {"driver": "file", "filename": os.fspath(path.absolute())}
        options = {"driver": "qcow2", "file": file, "backing": options}
    return f"json:{json.dumps(options)}"


def _follow(process: subprocess.Popen[bytes], stop: Stop, progress: Callable[[float], None]) -> bytes:
    """Read the output of qemu-img until it ends, reporting its progress; return its stderr."""
    assert process.stdout is not None
    assert process.stderr is not None
    errors = b""
    streams = [process.stdout, process.stderr]
    while streams:
        stop.check()
        readable, _, _ = select.select(streams, [], [], 0.25)
        for stream in readable:
            output = os.read(stream.fileno(), 65536)
            if not output:
                streams.remove(stream)
            elif stream is process.stderr:
                errors += output
            else:
                for percent in _PROGRESS.findall(output):
                    progress(float(percent))
    return errors


def _run(argv: Sequence[str], what: str, *, pass_fds: Sequence[int] = ()) -> None:
    result = subprocess.run(
        [*_program(), *argv], capture_output=True, stdin=subprocess.DEVNULL, check=False, pass_fds=pass_fds, cwd="/"
    )
    if result.returncode != 0:
        _raise(result.stderr, what)


def _program() -> Sequence[str]:
    """Return the program with which an argument list begins. Raises VbackupError if its end would not be seen."""
    refuse_lost_ends()
    return _PROGRAM


def _raise(errors: bytes, what: str) -> None:
    reason = _last_line(errors)
    if QemuText(reason).is_no_space:
        raise NoSpaceError(f"Cannot {what}: no space left. Free some space and run the same command again.")
    raise StorageError(f"Cannot {what}: {reason}.")


def _last_line(errors: bytes) -> str:
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("qemu-img: ").rstrip(".") if lines else "qemu-img failed without a message"
