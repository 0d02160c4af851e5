"""Backups as streams: for a program that keeps the bytes itself, and says when they are safe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vbackup.api.connected import Connected

if TYPE_CHECKING:
    from vbackup.model import Backup
    from vbackup.operations.restore import Restored
    from vbackup.operations.stream_backup import StreamRequest
    from vbackup.operations.stream_end import Ended
    from vbackup.operations.stream_restore import Received
    from vbackup.report import Reporter
    from vbackup.repository.repository import Repository
    from vbackup.repository.stream_tar import Read, Write
    from vbackup.scripts.runner import DomainScripts, Settings
    from vbackup.stop import Stop


class Streams(Connected):
    """Calls that write and read streams. A stage has the records of what was sent, and is no repository of backups."""

    def backup_stream(
        self,
        request: StreamRequest,
        write: Write,
        *,
        stage: str | os.PathLike[str] | Repository,
        scripts: Settings | DomainScripts | None = None,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> Backup:
        """Back up a domain, send the backup through ``write``, and return it; it waits for ``commit_stream`` then.

        ``write`` takes bytes, and returns when all are written. ``stage``: a directory for the records, and for the
        backup until it is sent; it is made if it does not exist. An earlier backup that waits for its commit is undone
        first. ``scripts``: the user's, which run around the backup; None: none. Raises what ``backup`` raises, and what
        ``write`` raises: then nothing is kept, and the base is as it was.
        """
        from vbackup.operations import stream_backup

        domain = request.backup.domain
        own = self._domain_scripts(scripts, work="backup", domain=domain, reporter=reporter, stop=stop)
        with own.attended(), self._host() as host:
            return stream_backup.run(
                request,
                write,
                host=host,
                stage=open_stage(stage),
                reporter=self._reporter(reporter),
                stop=self._stop(stop),
                scripts=own,
            )

    def commit_stream(
        self,
        domain: str,
        job: str,
        *,
        stage: str | os.PathLike[str] | Repository,
        wait_lock_s: float = 0.0,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> Ended:
        """Make the backup of that job a base for later ones; libvirt is not asked.

        Call it when the stream is safe. Raises StreamNotPendingError if there is no such backup, DomainNotFoundError,
        BusyError if another backup of the domain has begun, StorageError.
        """
        from vbackup.operations import stream_end

        return stream_end.commit(
            domain,
            job,
            stage=_opened(stage),
            reporter=self._reporter(reporter),
            stop=self._stop(stop),
            wait_lock_s=wait_lock_s,
        )

    def abort_stream(
        self,
        domain: str,
        job: str,
        *,
        stage: str | os.PathLike[str] | Repository,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> Ended:
        """Undo the backup of that job, in QEMU too; its base is as it was. A job without one has nothing to undo.

        libvirt is only asked if there is something to undo. Raises ChainError if it was committed, BusyError if another
        backup of the domain has begun, and what ``recover`` raises.
        """
        from vbackup.operations import stream_end

        return stream_end.abort(
            domain,
            job,
            connect=self._host,
            stage=_opened(stage),
            reporter=self._reporter(reporter),
            stop=self._stop(stop),
        )

    def receive_stream(
        self,
        read: Read,
        *,
        domain: str | None = None,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> list[Received]:
        """Read all streams that follow each other into the repository; return what came, in order.

        ``read`` takes a number of bytes and returns at most so many, and none at the end. Only streams of ``domain``, a
        name or UUID, are accepted. Raises StreamError if a stream is cut, damaged or of another domain, ChainError if a
        backup that it depends on is not there, StorageError, NoSpaceError, BusyError: streams before it stay.
        """
        from vbackup.operations import stream_restore

        return stream_restore.run(
            read,
            repository=self.repository,
            domain=domain,
            reporter=self._reporter(reporter),
            stop=self._stop(stop),
        )

    def restore_stream(
        self,
        read: Read,
        output: str | os.PathLike[str],
        *,
        domain: str | None = None,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> tuple[Restored, list[Received]]:
        """Read the streams of one domain, and write its disks as they are in the last one; nothing else is kept.

        ``output``: a directory that does not exist. No repository is needed. Raises what ``receive_stream`` and
        ``restore`` raise; nothing is left then.
        """
        from vbackup.operations import stream_restore

        return stream_restore.run_to_directory(
            read, Path(output), domain=domain, reporter=self._reporter(reporter), stop=self._stop(stop)
        )


def open_stage(stage: str | os.PathLike[str] | Repository) -> Repository:
    """Open the stage of streams in this directory, and make it if there is nothing yet. Raises StorageError."""
    from vbackup.operations import stream_backup

    return stream_backup.opened_stage(Path(stage)) if isinstance(stage, (str, os.PathLike)) else stage


def _opened(stage: str | os.PathLike[str] | Repository) -> Repository:
    from vbackup.repository.repository import Repository

    return Repository.open(Path(stage), is_stage=True) if isinstance(stage, (str, os.PathLike)) else stage
