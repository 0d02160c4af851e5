"""Restore backups: to a directory, over the disks of the domain, or at once, while the data comes home."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbackup.api.connected import Connected
from vbackup.errors import UsageError

if TYPE_CHECKING:
    from vbackup.operations.live_abort import Aborted, AbortRequest
    from vbackup.operations.live_restore import LiveRequest, LiveRestored
    from vbackup.operations.live_resume import ResumeRequest
    from vbackup.operations.restore import Restored, RestoreRequest
    from vbackup.operations.restore_in_place import InPlaceRequest, RestoredInPlace
    from vbackup.report import Reporter
    from vbackup.scripts.runner import DomainScripts, Settings
    from vbackup.stop import Stop


class Restores(Connected):
    """Calls that write disks from backups."""

    def restore(
        self,
        request: RestoreRequest | str,
        output: str | os.PathLike[str] | None = None,
        *,
        pool: str | None = None,
        scripts: Settings | DomainScripts | None = None,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> Restored:
        """Restore a backup: an independent image of each disk, the machine's files, and a domain XML that uses them.

        ``restore("web", "/restored")`` is short for ``RestoreRequest("web", Path("/restored"))``: the newest backup,
        with all disks, as qcow2, defined nowhere. ``pool``: the name of a storage pool in which the disks become
        volumes. Where libvirt is on another host that SSH leads to, a domain that is to be defined is restored to a
        directory or a pool on that host (vbackup-remote(7)). libvirt is only asked for a pool, or to define the domain
        (``RestoreRequest.define``). ``scripts``: the user's, which run around the restore (vbackup-scripts(7)); None:
        none.

        All images are compared with the block lists of the backup as they are written, and get their names when all
        are complete. Existing files are never overwritten.

        Raises DomainNotFoundError, ChainError (no such backup; DamagedError if a block of it is damaged: restore
        another backup, or a copy), AmbiguousHostError and PartialBackupError (say which backup is meant, by
        ``RestoreRequest.wanted``), DiskError, UnsuitableError (of the pool or the new domain), StorageError (the
        output exists), NoSpaceError, BusyError, ScriptError, InterruptedBySignalError. Nothing is left then, but
        RestoredOnlyError says that only the definition failed, and what was restored stays.
        """
        from vbackup.operations import restore, restore_documents
        from vbackup.scripts.finding import ScriptPhase

        asked = _restore_request(request, output)
        named = asked.domain
        uri = self.uri if asked.uri is None else asked.uri
        asked = replace(asked, domain=self.uuid_of(asked.domain, reporter=reporter), uri=uri)
        with ExitStack() as stack:
            host = opened = None
            if asked.define is not None or pool is not None:
                host = stack.enter_context(self._host())
            if host is not None and pool is not None:
                from vbackup.domain import pools

                opened = pools.opened(host, pool, by_link=asked.define is not None)
            own = self._domain_scripts(scripts, work="restore", domain=named, reporter=reporter, stop=stop)

            def restored() -> Restored:
                tools: Any = {"repository": self.repository, "scripts": own}
                tools |= {"reporter": self._reporter(reporter), "stop": self._stop(stop)}
                if host is not None and asked.define is not None and host.has_link:
                    from vbackup.operations import restore_there

                    return restore_there.run(asked, host=host, pool=opened, **tools)
                return restore.run(asked, host=host, pool=opened, **tools)

            return own.around(
                restored,
                after=ScriptPhase.POST_RESTORE,
                document=lambda done: restore_documents.restored(done, asked.image_format),
            )

    def restore_in_place(
        self,
        request: InPlaceRequest | str,
        *,
        scripts: Settings | DomainScripts | None = None,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> RestoredInPlace:
        """Let the disks of a domain of the host, which is off, have the content of a backup again.

        Only what differs is written; where that cannot be trusted, a disk gets a new image. The host may be another one
        that SSH leads to. ``request``: the options; a name or UUID is short for the newest backup.
        ``scripts``: as for ``restore``. Raises ScriptError,
        DomainNotFoundError, UnsuitableError (the domain runs, or has saved memory), DiskError (a disk cannot be
        restored in place: use ``restore``), NoSpaceError, BusyError, ChainError, StorageError. Nothing was written
        then, unless a warning says that a disk is in the middle: the same call goes on there.
        """
        from vbackup.operations import restore_documents, restore_in_place
        from vbackup.scripts.finding import ScriptPhase

        asked = restore_in_place.InPlaceRequest(request) if isinstance(request, str) else request
        with self._host() as host:
            own = self._domain_scripts(scripts, work="restore", domain=asked.domain, reporter=reporter, stop=stop)
            return own.around(
                lambda: restore_in_place.run(
                    asked,
                    host=host,
                    repository=self.repository,
                    reporter=self._reporter(reporter),
                    stop=self._stop(stop),
                    scripts=own,
                ),
                after=ScriptPhase.POST_RESTORE,
                document=restore_documents.rolled_back,
            )

    def restore_live(
        self,
        request: LiveRequest,
        *,
        pool: str | None = None,
        scripts: Settings | DomainScripts | None = None,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> LiveRestored:
        """Start a domain from a backup at once, and return when all its data is in its own images.

        Where libvirt is on another host that SSH leads to, the domain runs there (vbackup-remote(7)).
        ``pool`` and ``scripts``: as for ``restore``.

        Raises what ``restore`` raises, and UnsuitableError if this host cannot do it. If the call ends before all data
        is at home, the domain waits for ``resume_live`` or ``abort_live``.
        """
        from vbackup.operations import live_restore, restore_documents
        from vbackup.scripts.finding import ScriptPhase

        asked = replace(request, domain=self.uuid_of(request.domain, reporter=reporter))
        with self._host() as host:
            opened = None
            if pool is not None:
                from vbackup.domain import pools

                opened = pools.opened(host, pool)
            own = self._domain_scripts(scripts, work="restore", domain=request.domain, reporter=reporter, stop=stop)
            return own.around(
                lambda: live_restore.run(
                    asked,
                    host=host,
                    repository=self.repository,
                    reporter=self._reporter(reporter),
                    stop=self._stop(stop),
                    pool=opened,
                    scripts=own,
                ),
                after=ScriptPhase.POST_RESTORE,
                document=restore_documents.live_restored,
            )

    def resume_live(
        self,
        request: ResumeRequest,
        *,
        scripts: Settings | DomainScripts | None = None,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> LiveRestored:
        """Go on with a live restore that was interrupted; return when all data is at home.

        ``scripts``: as for ``restore``, but those before a restore have been run when it began.

        Raises what ``restore_live`` raises, and UnsuitableError if there is no such restore in the directory.
        """
        from vbackup.operations import live_resume, restore_documents
        from vbackup.scripts.finding import ScriptPhase

        with self._host() as host:
            own = self._domain_scripts(scripts, work="restore", domain=request.domain, reporter=reporter, stop=stop)
            return own.around(
                lambda: live_resume.run(
                    request,
                    host=host,
                    repository=self.repository,
                    reporter=self._reporter(reporter),
                    stop=self._stop(stop),
                    scripts=own,
                ),
                after=ScriptPhase.POST_RESTORE,
                document=restore_documents.live_restored,
            )

    def abort_live(self, request: AbortRequest, *, reporter: Reporter | None = None) -> Aborted:
        """End a live restore: the domain is ended and undefined, its files are removed, the backup stays.

        Raises UsageError, which says what would be lost, unless ``request.is_confirmed``; UnsuitableError if all data
        is at home already.
        """
        from vbackup.operations import live_abort

        with self._host() as host:
            return live_abort.run(request, host=host, repository=self.repository, reporter=self._reporter(reporter))


def _restore_request(request: RestoreRequest | str, output: str | os.PathLike[str] | None) -> RestoreRequest:
    from vbackup.operations.restore import RestoreRequest

    if isinstance(request, str):
        if output is None:
            raise UsageError("No directory given to restore to.")
        return RestoreRequest(request, Path(output))
    if output is not None:
        raise UsageError("The request has the directory to restore to: give it once.")
    return request
