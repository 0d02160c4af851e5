"""The memory of what each notifier has been told, which makes it be told once.

    STATE/notices/NAME.json    what it has been told (vbackup.notices.told)
    STATE/notices/NAME.lock    locked while a run decides and sends, so that two runs do not tell the same

NAME is quoted as in a URL. A memory that cannot be read counts as empty, and one that cannot be locked in time is used
without: a message twice is better than none.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from vbackup import files
from vbackup.errors import VbackupError
from vbackup.notices import told
from vbackup.notices.told import Told

log = logging.getLogger(__name__)

_MAX_BYTES = 4 * 1024 * 1024
_TICK_S = 0.1


class NotKept(str):
    """A sentence on a message that was sent, but that nobody remembers."""

    __slots__ = ()


@dataclass(frozen=True)
class Memory:
    """What the notifiers of this machine have been told. ``state``: the directory with the records of runs."""

    state: Path

    def path(self, name: str) -> Path:
        """Return the file of a notifier."""
        return self.state / "notices" / f"{quote(name, safe='')}.json"

    def read(self, name: str) -> Told:
        """Return what a notifier has been told; nothing, if there is no memory of it."""
        path = self.path(name)
        try:
            return told.read(json.loads(files.read_regular(path, max_bytes=_MAX_BYTES)))
        except FileNotFoundError:
            return Told()
        except (OSError, ValueError, RecursionError) as err:
            log.warning("The memory of what was told in %s cannot be read (%s); it begins again.", path, err)
            return Told()

    def keep(self, name: str, content: Told) -> None:
        """Keep what it has been told now. Raises OSError, StorageError."""
        path = self.path(name)
        files.make_private(path.parent)
        files.replace_text(path, json.dumps(content.document(), indent=1, ensure_ascii=False) + "\n")

    @contextmanager
    def locked(self, name: str, *, wait_s: float) -> Iterator[None]:
        """Keep other runs from deciding what this notifier is told, while the block runs; wait at most ``wait_s``."""
        fd = self._open_lock(name)
        try:
            if fd is not None and not _lock(fd, time.monotonic() + wait_s):
                log.warning("Another run has been telling notifier %s for %.0f s; this one goes on.", name, wait_s)
            yield
        finally:
            if fd is not None:
                os.close(fd)

    def _open_lock(self, name: str) -> int | None:
        path = self.path(name).with_suffix(".lock")
        try:
            files.make_private(path.parent)
            return files.open_regular(path, os.O_RDWR | os.O_CREAT)
        except (OSError, VbackupError) as err:
            log.warning("Cannot lock %s: %s", path, err)
            return None


def _lock(fd: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_TICK_S)
        except OSError:  # a filesystem without locks
            return False
        else:
            return True
