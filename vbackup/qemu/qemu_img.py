"""Run qemu-img: make target images, look at headers, convert a chain into one image.

Images are always named with their format, so nothing is probed, and by absolute paths, so no part of
a name is taken for a protocol.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vbackup.errors import ChainError, NoSpaceError, QemuText, StorageError
from vbackup.fields import Fields
from vbackup.model import Compression, ImageFormat, ImageOptions
from vbackup.stop import Stop

_PROGRESS = re.compile(rb"\(([0-9.]+)/100%\)")


@dataclass(frozen=True)
class Header:
    """What the header of an image says about others."""

    virtual_size_bytes: int
    backing_file: str | None
    backing_format: str | None
    data_file: str | None


def create(path: Path, size_bytes: int, *, backing_rpath: str | None, options: ImageOptions) -> None:
    """Make an empty qcow2 image of an empty file; the backing file is named in its header but not opened.

    Raises StorageError or NoSpaceError where the filesystem or qemu-img refuses.
    """
    argv = ["create", "-q", "-f", "qcow2", "-o", f"cluster_size={options.cluster_bytes}"]
    if options.compression is not Compression.NONE:
        argv += ["-o", f"compression_type={options.compression.value}"]
    if backing_rpath is not None:
        argv += ["-u", "-b", backing_rpath, "-F", "qcow2"]
    _run([*argv, os.fspath(path.absolute()), str(size_bytes)], f"make the image {path}")


def create_in(fd: int, size_bytes: int, *, what: str) -> None:
    """Make an empty qcow2 image of an open file that need not have a name. Raises as ``create``."""
    argv = ["create", "-q", "-f", "qcow2", f"/proc/self/fd/{fd}", str(size_bytes)]
    _run(argv, what, pass_fds=(fd,))


def header(path: Path, *, image_format: str = "qcow2", shared: bool = False) -> Header:
    """Read the header of an image; no other image is opened. Raises ChainError where it is none of that format.

    With ``shared`` somebody else may be writing the image.
    """
    argv = ["qemu-img", "info", "-f", image_format, "--output=json", *(["-U"] if shared else [])]
    argv.append(os.fspath(path.absolute()))
    done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise ChainError(f"The image {path} cannot be read: {_last_line(done.stderr)}.")
    fields = Fields(json.loads(done.stdout), f"qemu-img info {path}", ChainError)
    data_file = None
    if "format-specific" in fields and "data" in fields.object("format-specific"):
        data_file = fields.object("format-specific").object("data").optional_text("data-file")
    return Header(
        virtual_size_bytes=fields.integer("virtual-size"),
        backing_file=fields.optional_text("backing-filename"),
        backing_format=fields.optional_text("backing-filename-format"),
        data_file=data_file,
    )


def convert(
    layers: Sequence[Path], output: Path, image_format: ImageFormat, *, stop: Stop, progress: Callable[[float], None]
) -> None:
    """Write what the layers of a chain hold, the oldest first, into a new image with mode 0600.

    Each is opened by its path; what the headers name as backing files is not looked at.
    ``progress`` is told the percentage. Raises StorageError or NoSpaceError; ends qemu-img on a request to stop.
    """
    os.close(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    argv = ["qemu-img", "convert", "-p", "-W", "-m", "8", "-O", image_format.value]
    argv += [_chain(layers), os.fspath(output.absolute())]
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            errors = _follow(process, stop, progress)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        _raise(errors, f"copy {layers[-1]} to {output}")


def _chain(layers: Sequence[Path]) -> str:
    """The options of the newest, those of the others in them (QAPI BlockdevOptionsQcow2), as a file name."""
    options: dict[str, Any] | None = None
    for path in layers:
        file = {"driver": "file", "filename": os.fspath(path.absolute())}
        options = {"driver": "qcow2", "file": file, "backing": options}
    return f"json:{json.dumps(options)}"


def _follow(process: subprocess.Popen[bytes], stop: Stop, progress: Callable[[float], None]) -> bytes:
    """Read what it prints until it ends; return what it said on stderr."""
    assert process.stdout is not None
    assert process.stderr is not None
    errors = b""
    streams = [process.stdout, process.stderr]
    while streams:
        stop.check()
        readable, _, _ = select.select(streams, [], [], 0.25)
        for stream in readable:
            piece = os.read(stream.fileno(), 65536)
            if not piece:
                streams.remove(stream)
            elif stream is process.stderr:
                errors += piece
            else:
                for percent in _PROGRESS.findall(piece):
                    progress(float(percent))
    return errors


def _run(argv: Sequence[str], what: str, *, pass_fds: Sequence[int] = ()) -> None:
    done = subprocess.run(
        ["qemu-img", *argv], capture_output=True, stdin=subprocess.DEVNULL, check=False, pass_fds=pass_fds
    )
    if done.returncode != 0:
        _raise(done.stderr, what)


def _raise(errors: bytes, what: str) -> None:
    reason = _last_line(errors)
    if QemuText(reason).is_no_space:
        raise NoSpaceError(f"Cannot {what}: no space left there. Make room and run the same command again.")
    raise StorageError(f"Cannot {what}: {reason}.")


def _last_line(errors: bytes) -> str:
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("qemu-img: ").rstrip(".") if lines else "qemu-img failed without a word"
