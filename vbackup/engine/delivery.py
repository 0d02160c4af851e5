"""Send a finished backup away instead of committing it, and hold what a later commit needs.

The other end of a backup: vbackup.engine.finish commits one to a repository. Here the repository is a stage of streams
(Repository.is_stage). The images of the backup are removed when they were sent; its directory keeps the name of an
unfinished one until whoever got the stream says what has become of it (vbackup.operations.stream_end). The base, with
its bitmaps, is not touched until then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vbackup.engine import finish
from vbackup.engine.unfinished import Unfinished
from vbackup.files import storage_errors
from vbackup.model import Backup
from vbackup.repository import manifest, stream_record
from vbackup.repository.journal import JOURNAL, Journal
from vbackup.repository.stream_record import StreamRecord

#: What stays of a backup: what its commit needs, and the next backup's choice of a base.
_KEPT = frozenset((manifest.NAME, stream_record.NAME, JOURNAL))


@dataclass(frozen=True)
class Delivery:
    """How a backup is sent, and by whom it was asked for."""

    record: StreamRecord  #: by whom it was asked for
    send: Callable[[Backup, Path], None]  #: writes the files in the directory; returns when all is written


def deliver(unfinished: Unfinished, written: Journal, delivery: Delivery, *, begun: float | None) -> Backup:
    """Send the backup, and hold it; return it as it was sent. ``begun`` as for finish.commit.

    Raises StorageError, NoSpaceError, and what ``send`` raises: then nothing is held.
    """
    stage = unfinished.stage
    backup = finish.described(unfinished, begun=begun)
    stage.write(stream_record.NAME, stream_record.data(delivery.record))
    stage.complete(backup)
    delivery.send(backup, stage.path)
    written.streamed()
    with storage_errors(f"write to {stage.path}"):
        for path in stage.path.iterdir():
            if path.name not in _KEPT:
                path.unlink()
    written.close()
    stage.hold()
    finish.warn(backup, unfinished)
    return backup
