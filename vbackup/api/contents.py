"""Read what is in backups: their disks as files or by NBD, and the files of their guests."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

from vbackup.api.connected import Connected

if TYPE_CHECKING:
    from vbackup.images.guest import Keys
    from vbackup.operations.cat import CatRequest
    from vbackup.operations.cp import Copies, CpRequest
    from vbackup.operations.ls import Listing, LsRequest
    from vbackup.operations.mount import Mounted, MountRequest
    from vbackup.operations.search import Searched, SearchRequest
    from vbackup.operations.serve import Served, ServeRequest
    from vbackup.operations.umount import UmountRequest, Unmounted
    from vbackup.report import Reporter
    from vbackup.stop import Stop


def no_keys(_name: str, _attempt: int) -> bytes | None:
    """Have no key: what is encrypted in a guest stays closed, and asking for a file in it raises UnsuitableError."""
    return None


class Contents(Connected):
    """Calls that show backups from within. The backups stay as they are, and cannot be removed meanwhile.

    ``keys``, where there is one, is called with the name of what is encrypted in the guest and the number of the
    attempt, from 0 on; it returns the passphrase, or None if there is none (to try again).
    """

    def mount(
        self, request: MountRequest, *, reporter: Reporter | None = None, stop: Stop | None = None
    ) -> AbstractContextManager[Mounted]:
        """Return a context manager that shows the disks of a backup as read-only files in a directory, in its block.

        ``Mounted.wait`` returns when they were unmounted by another process, or a stop is requested. Raises
        DomainNotFoundError, AmbiguousNameError, and in the block what ``restore`` raises of backups, UnsuitableError
        (no FUSE or no storage daemon), StorageError (the directory), BusyError, StorageDaemonGoneError.
        """
        from vbackup.operations import mount

        asked = replace(request, domain=self.uuid_of(request.domain, reporter=reporter))
        return mount.mounted(
            asked, repository=self.repository, reporter=self._reporter(reporter), stop=self._stop(stop)
        )

    def umount(self, request: UmountRequest, *, stop: Stop | None = None) -> Unmounted:
        """End a mount of another process; one of this process ends with its block, or by its ``stop``.

        Raises BusyError if a file is in use, UnsuitableError.
        """
        from vbackup.operations import umount

        return umount.run(request, stop=self._stop(stop))

    def serve(
        self, request: ServeRequest, *, reporter: Reporter | None = None, stop: Stop | None = None
    ) -> AbstractContextManager[Served]:
        """Return a context manager that serves the disks of a backup by NBD on a socket of this user, in its block.

        ``Served.exports`` has the URI of each disk; ``Served.wait`` returns when a stop is requested. Raises what
        ``mount`` raises.
        """
        from vbackup.operations import serve

        asked = replace(request, domain=self.uuid_of(request.domain, reporter=reporter))
        return serve.served(asked, repository=self.repository, reporter=self._reporter(reporter), stop=self._stop(stop))

    def ls(
        self,
        request: LsRequest,
        *,
        keys: Keys = no_keys,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> Listing:
        """Return the file systems of a guest in a backup, or the files of a directory (``request.address``).

        Raises DomainNotFoundError, AmbiguousNameError, what ``restore`` raises of backups, UnsuitableError (no such
        file or file system, no key, or guestfish is not installed), ApplianceError.
        """
        from vbackup.operations import ls

        return ls.run(
            replace(request, domain=self.uuid_of(request.domain, reporter=reporter)),
            keys=keys,
            repository=self.repository,
            reporter=self._reporter(reporter),
            stop=self._stop(stop),
        )

    def cp(
        self,
        request: CpRequest,
        output: io.RawIOBase | None = None,
        *,
        keys: Keys = no_keys,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> Copies:
        """Copy files of a guest out of a backup to ``request.target``, or as a tar archive to ``output``.

        Raises what ``ls`` raises, and UsageError or StorageError if the target cannot be used; PartlyCopiedError if
        some files were copied before.
        """
        from vbackup.operations import cp

        return cp.run(
            replace(request, domain=self.uuid_of(request.domain, reporter=reporter)),
            output,
            keys=keys,
            repository=self.repository,
            reporter=self._reporter(reporter),
            stop=self._stop(stop),
        )

    def cat(
        self,
        request: CatRequest,
        write: Callable[[bytes], object],
        *,
        keys: Keys = no_keys,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> None:
        """Call ``write`` with the content of a file of a guest, piece by piece. Raises what ``ls`` raises."""
        from vbackup.operations import cat

        cat.run(
            replace(request, domain=self.uuid_of(request.domain, reporter=reporter)),
            write,
            keys=keys,
            repository=self.repository,
            reporter=self._reporter(reporter),
            stop=self._stop(stop),
        )

    def search(
        self,
        domain: str,
        request: SearchRequest,
        *,
        keys: Keys = no_keys,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> Searched:
        """Return the files of a guest whose names match, and the backups that have each of them as it is.

        A backup that cannot be read is no error, but in ``Searched.failed``. Raises DomainNotFoundError,
        AmbiguousNameError, UnsuitableError if guestfish is not installed, ChainError for an unknown host,
        InterruptedBySignalError.
        """
        from vbackup.operations import search

        return search.run(
            self.uuid_of(domain, reporter=reporter),
            request,
            keys=keys,
            repository=self.repository,
            reporter=self._reporter(reporter),
            stop=self._stop(stop),
        )
