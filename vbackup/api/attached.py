"""Work on the dirty bitmaps of a QEMU, and send it QMP transactions: a domain's, one behind a socket, or of images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vbackup.api.connected import Connected
from vbackup.errors import StorageError

if TYPE_CHECKING:
    from vbackup.domain.attached import AttachedQemu
    from vbackup.model import ImageFormat
    from vbackup.operations.bitmap import Changed, ChangeRequest, Listed
    from vbackup.operations.transaction import Done, TransactionRequest
    from vbackup.report import Reporter
    from vbackup.repository.history import History
    from vbackup.stop import Stop


class Attached(Connected):
    """Calls that attach to a QEMU, and calls for what is attached."""

    @contextmanager
    def attach(
        self, domain: str, *, exclusive: bool = False, reporter: Reporter | None = None
    ) -> Iterator[AttachedQemu]:
        """Attach to a domain's QEMU during the block; if the domain is off, to a storage daemon with its images.

        ``exclusive``: no other host uses the images of a domain that is off. Raises DomainNotFoundError,
        HostUnreachableError, and what ``backup`` raises of domains that cannot be reached.
        """
        from vbackup.domain import attached
        from vbackup.domain.access import Access

        access = Access(exclusive, writes_data=True)
        with (
            self._host() as host,
            attached.of_domain(host, domain, reporter=self._reporter(reporter), access=access) as opened,
        ):
            yield opened

    def attach_socket(self, path: str | os.PathLike[str]) -> AbstractContextManager[AttachedQemu]:
        """Return a context manager that attaches to a QEMU by its QMP socket; libvirt is not asked.

        Raises, in the block, ConnectionLostError and InactiveError.
        """
        from vbackup.domain import attached

        return attached.of_socket(os.fspath(path))

    def attach_images(
        self,
        images: Sequence[tuple[str, Path, ImageFormat]],
        *,
        exclusive: bool = False,
        reporter: Reporter | None = None,
    ) -> AbstractContextManager[AttachedQemu]:
        """Return a context manager that opens image files in a storage daemon: (dev, path, format) of each.

        Raises, in the block, BusyError if an image is in use, DiskError, UnsuitableError.
        """
        from vbackup.domain import attached
        from vbackup.domain.access import Access

        access = Access(exclusive, writes_data=True)
        return attached.of_images(images, reporter=self._reporter(reporter), access=access)

    def bitmaps(self, attached: AttachedQemu, *, disks: Sequence[str] = ()) -> list[Listed]:
        """Return the dirty bitmaps of the disks, or of these only, with their owners and states.

        Raises DiskError, QmpError, ConnectionLostError.
        """
        from vbackup.operations import bitmap

        return bitmap.listing(attached, disks=disks, trackers=_trackers(attached.uuid))

    def change_bitmap(
        self,
        attached: AttachedQemu,
        request: ChangeRequest,
        *,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> list[Changed]:
        """Add, remove, clear, enable, disable or merge a bitmap, on all disks or some, in one transaction.

        Raises UsageError, DiskError, UnsafeError (libvirt or a repository relies on it), TransactionRefusedError.
        """
        from vbackup.operations import bitmap

        return bitmap.change(
            request,
            attached=attached,
            history=self._history(attached.uuid),
            reporter=self._reporter(reporter),
            stop=self._stop(stop),
        )

    def _history(self, uuid: str | None) -> Callable[[str], History | None]:
        """Return a function from a repository id to the domain's history, None if it is of another repository."""

        def history(repository_id: str) -> History | None:
            if uuid is None or not self.has_repository or self.repository.id != repository_id:
                return None
            return self.repository.catalogue(uuid).history

        return history

    def transaction(
        self,
        attached: AttachedQemu,
        request: TransactionRequest,
        *,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> Done:
        """Check a QMP transaction, send it, and wait for its jobs if ``request.wait``; return what became of them.

        A job that failed is no error, but in ``Done.failed_jobs``. Raises TransactionError (QEMU would refuse it, and
        ``path`` says where), UnsafeError, TransactionRefusedError, ConnectionLostError, InterruptedBySignalError.
        """
        from vbackup.operations import transaction

        return transaction.run(request, attached=attached, reporter=self._reporter(reporter), stop=self._stop(stop))


def _trackers(uuid: str | None) -> list[str]:
    """Return the names of the domain's trackers, as far as they can be read; the list goes without them."""
    from vbackup.sessions import store

    if uuid is None:
        return []
    with suppress(StorageError):
        return store.Store(store.default_directory()).tracker_names(uuid)
    return []
