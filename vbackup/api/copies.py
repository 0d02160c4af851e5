"""Copies of backups at a target: bring points there, and read, verify, remove or fetch those that are there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vbackup.api.connected import Connected
from vbackup.report import Reporter, Silent
from vbackup.stop import Stop

if TYPE_CHECKING:
    from vbackup.copies.place import TargetPlace
    from vbackup.copies.view import View
    from vbackup.operations.copy import Copied, CopyRequest
    from vbackup.operations.copy_prune import CopiesPruned, CopyPruneRequest
    from vbackup.operations.copy_rewrap import Rewrapped
    from vbackup.operations.copy_verify import CopiesVerified, CopyVerifyRequest
    from vbackup.operations.fetch import Fetched, FetchRequest
    from vbackup.repository.choice import Wanted
    from vbackup.repository.repository import Repository


class Copies(Connected):
    """Calls that bring backups of the repository elsewhere."""

    def copy(
        self,
        request: CopyRequest,
        target: TargetPlace | str,
        *,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> Copied:
        """Copy the backups of a domain that a target does not have; an empty place becomes a target.

        ``request.uuid``: name or UUID. ``target``: a directory or URL, or with keys a TargetPlace. Raises
        DomainNotFoundError, AmbiguousNameError, ChainError (what is to be copied is damaged, or the target has another
        backup under an id), BusyError, StorageError, NoSpaceError, InterruptedBySignalError: the same call goes on.
        """
        from vbackup.operations import copy

        place = _place(target)
        asked = replace(request, uuid=self.uuid_of(request.uuid, reporter=reporter))
        with place.opened(create=True, is_dry_run=request.dry_run) as store:
            return copy.run(
                asked,
                repository=self.repository,
                store=store,
                keys=place.keys,
                reporter=self._reporter(reporter),
                stop=self._stop(stop),
            )


class OpenedCopies:
    """A target that is open for reading, until the end of the block of ``open_copies``."""

    def __init__(self, view: View) -> None:
        self._view = view

    @property
    def name(self) -> str:
        """The target, as users call it."""
        return self._view.target.name

    @property
    def repository(self) -> Repository:
        """The points as a repository, for ``connect``: all records, and the images that ``bring`` has brought."""
        return self._view.repository

    def bring(self, domain: str, wanted: Wanted | None = None, *, speed_bytes_s: int | None = None) -> int:
        """Fetch the images that a restore of a point needs, and no others; return the number of bytes.

        Raises DomainNotFoundError, AmbiguousNameError, ChainError (the point is unknown, or an object is missing or
        damaged), what choosing a backup raises, StorageError, NoSpaceError, InterruptedBySignalError.
        """
        from vbackup.repository.choice import Wanted

        uuid = self.repository.find(domain)
        return self._view.bring(uuid, Wanted() if wanted is None else wanted, bytes_s=speed_bytes_s)

    def show(self, domain: str, wanted: Wanted | None = None) -> None:
        """Let ``mount``, ``serve``, ``ls``, ``cat`` and ``cp`` open a point: what they read of large images is fetched.

        A restore needs ``bring``. What cannot be fetched when it is read is an error of that read, and a warning.
        Raises as ``bring``.
        """
        from vbackup.repository.choice import Wanted

        uuid = self.repository.find(domain)
        self._view.show(uuid, Wanted() if wanted is None else wanted)

    def verify(self, request: CopyVerifyRequest) -> CopiesVerified:
        """Read the objects of points, and compare them with the digests that their manifests have.

        ``request.uuid``: name or UUID. Damage is no error, but in the answer. Raises DomainNotFoundError,
        AmbiguousNameError, ChainError (an unknown point), StorageError, InterruptedBySignalError.
        """
        from vbackup.operations import copy_verify

        return copy_verify.run(replace(request, uuid=self.repository.find(request.uuid)), self._view)

    def prune(self, request: CopyPruneRequest) -> CopiesPruned:
        """Remove points that no rule keeps, and on which no other depends. ``request.uuid``: name or UUID.

        That the target forbids a deletion is no error, but in the answer. Raises DomainNotFoundError,
        AmbiguousNameError, ChainError, NeededError, BusyError, StorageError, InterruptedBySignalError.
        """
        from vbackup.operations import copy_prune

        return copy_prune.run(
            replace(request, uuid=self.repository.find(request.uuid)),
            known=self._view.known,
            reporter=self._view.reporter,
            stop=self._view.stop,
        )

    def fetch(self, request: FetchRequest) -> Fetched:
        """Make a repository of the target, or go on with what an interrupted fetch has left.

        ``request.uuids``: names or UUIDs. A point that is damaged is no error, but in the answer. Raises
        DomainNotFoundError, AmbiguousNameError, StorageError, NoSpaceError, IdentityNeededError,
        InterruptedBySignalError.
        """
        from vbackup.operations import fetch

        uuids = tuple(dict.fromkeys(self.repository.find(one) for one in request.uuids))
        return fetch.run(replace(request, uuids=uuids), self._view)


@contextmanager
def open_copies(
    target: TargetPlace | str,
    *,
    cache: str | os.PathLike[str] | None = None,
    source: str | os.PathLike[str] | None = None,
    reporter: Reporter | None = None,
    stop: Stop | None = None,
) -> Iterator[OpenedCopies]:
    """Yield what a target has; only the manifests are read, and those that were not read before.

    ``target``: a directory or URL, or with keys a TargetPlace. ``cache``: a directory for manifests, and for what is
    fetched until the end of the block (default: ``default_cache()``). ``source``: the repository that points were
    copied from; it knows their manifests, also if the target is encrypted and no identity is given. ``reporter`` and
    ``stop``: of all that is done in the block. Raises StorageError if there is no target, IdentityError if it is
    encrypted and nothing can be read, MissingPackageError, InterruptedBySignalError.
    """
    from vbackup.copies import view
    from vbackup.copies.place import default_cache

    place = _place(target)
    with (
        place.opened() as store,
        view.opened(
            store,
            default_cache() if cache is None else Path(cache).absolute(),
            keys=place.keys,
            source=None if source is None else Path(source).absolute(),
            reporter=Silent() if reporter is None else reporter,
            stop=Stop() if stop is None else stop,
        ) as opened,
    ):
        yield OpenedCopies(opened)


def rewrap_copies(target: TargetPlace, *, reporter: Reporter | None = None, stop: Stop | None = None) -> Rewrapped:
    """Let the recipients of ``target.keys`` read all points of an encrypted target; its identities open them now.

    No data is fetched or stored again. Who could read a point before still can. Raises UsageError without recipients,
    or if the target is not encrypted, IdentityError, SealedError, StorageError, InterruptedBySignalError: the same call
    goes on.
    """
    from vbackup.operations import copy_rewrap

    with target.opened() as store:
        return copy_rewrap.run(
            store,
            target.keys,
            reporter=Silent() if reporter is None else reporter,
            stop=Stop() if stop is None else stop,
        )


def _place(target: TargetPlace | str) -> TargetPlace:
    from vbackup.copies.place import TargetPlace

    return TargetPlace(target) if isinstance(target, str) else target
