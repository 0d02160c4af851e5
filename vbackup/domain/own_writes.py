"""Remember in an image file which of its changes were only vbackup's own bitmaps.

A backup of a domain that is off writes bitmaps into its image, and so changes the file's size and time. If the image is
the backing file of other domains, as a template is, their next backups would take that for a change of the content
(vbackup.engine.underlay), and be fulls each night. So the states of the file that only such writes separate are kept in
an extended attribute, the newest last. It goes where the file goes, and ends with it. The current state is the last one
only as long as nobody else has written. A filesystem without extended attributes costs fulls.

The state before is read just before the storage daemon opens the image, which locks others out.

Times can be set back, so backups that recorded a ctime do not rely on these notes but on a digest of what the guest can
read, which bitmaps do not change. If that of the state before is known, so is that of the state after, and nobody has
to read the image for it (vbackup.domain.file_contents).
"""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vbackup.domain import file_contents

log = logging.getLogger(__name__)

ATTRIBUTE = "user.vbackup.own-writes"
#: How many states are kept: as many nights may pass between two backups of a domain that has the image below it.
MAX_STATES = 64

#: Size in bytes and st_mtime_ns.
State = tuple[int, int]


class OwnWrites:
    """The files that a storage daemon of ours may write to, as they were before."""

    def __init__(self) -> None:
        self._before: dict[Path, os.stat_result] = {}

    def expect(self, path: str, *, is_open: bool = False) -> None:
        """Remember the state of an image before it is opened for writing; what is no regular file is ignored.

        ``is_open``: the daemon has it open already, for reading at least, and may have written to it before.
        """
        if is_open and Path(path) in self._before:
            return
        self._before.pop(Path(path), None)
        status = _status(Path(path)) if path.startswith("/") else None
        if status is not None:
            self._before[Path(path)] = status

    def record(self) -> None:
        """Note the states after the daemon has closed the files. Never fails."""
        for path, before in self._before.items():
            after = _status(path)
            if after is None or _state(after) == _state(before):
                continue
            states = [*earlier(path, _state(before)), _state(before), _state(after)][-MAX_STATES:]
            try:
                os.setxattr(path, ATTRIBUTE, json.dumps(states).encode("ascii"))
            except OSError as err:
                log.debug("%s: the own writes cannot be noted: %s", path, err)
            noted = _status(path)  # the attribute has changed ctime
            if noted is not None and _state(noted) == _state(after):
                file_contents.carry_over(path, before, noted)


@contextmanager
def recorded(*, only_bitmaps: bool) -> Iterator[OwnWrites]:
    """Yield the own writes of the block, and note them after it if they are ``only_bitmaps``."""
    writes = OwnWrites()
    try:
        yield writes
    finally:
        if only_bitmaps:
            writes.record()


def earlier(path: Path, state: State) -> tuple[State, ...]:
    """Return the earlier states of a file whose state is this one, which has the same content except for bitmaps."""
    try:
        value = json.loads(os.getxattr(path, ATTRIBUTE))
        states = [(int(size_bytes), int(mtime_ns)) for size_bytes, mtime_ns in value]
    except (OSError, ValueError, TypeError, RecursionError):
        return ()  # none, or nobody's: it only ever saves a full
    return tuple(states[:-1]) if states[-1:] == [state] else ()


def _state(status: os.stat_result) -> State:
    return status.st_size, status.st_mtime_ns


def _status(path: Path) -> os.stat_result | None:
    """Return the status of a regular file, None if it is none."""
    try:
        status = path.stat()
    except OSError as err:
        log.debug("%s: %s", path, err)
        return None
    return status if stat.S_ISREG(status.st_mode) else None
