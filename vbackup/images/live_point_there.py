"""Serve the disks of a backup to the QEMU of a domain on another host, on a socket there that leads here by SSH.

QEMU knows the socket by its path, in the directory of the restored domain, so it can connect again, and does
(vbackup.engine.live_backing). When the link is lost, the helper there ends its SSH session, which closes QEMU's
connection: QEMU then waits, and asks nobody else. A new link brings the socket back to the same path.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from vbackup.domain.host import Host
from vbackup.domain.qemu_user import QemuUser
from vbackup.errors import LinkLostError, RemoteError, VbackupError
from vbackup.images.flatten import Layer
from vbackup.images.live_point import AGAIN_S, LivePoint
from vbackup.remote.link import Link
from vbackup.report import Reporter

log = logging.getLogger(__name__)

#: How often to look whether the link is lost.
TICK_S = 0.25


class LivePointThere:
    """The disks of a backup as exports on a socket of another host. A context manager, whose end removes the socket.

    A link that is lost is replaced, as long as the block runs. Nothing survives this process: the guest then waits for
    what is not at home, until somebody serves it again.

    Entering raises what LivePoint raises, SshError, HelperError, LinkLostError, ForwardingError, RemoteError.
    """

    after = "Nobody serves its backup any more, so its guest waits for what is not at home."

    def __init__(
        self,
        disks: Mapping[str, Sequence[Layer]],
        path: Path,
        *,
        user: QemuUser,
        host: Host,
        hold: Callable[[Link], None],
        reporter: Reporter,
    ) -> None:
        """``path`` is that of the socket there, and ``user`` whom QEMU runs as, there.

        ``hold`` is called with each link before the socket is there, and takes what only one vbackup may have. It
        raises VbackupError.
        """
        self._disks, self._path, self._user, self._reporter = disks, path, user, reporter
        self._host, self._hold = host, hold
        self._stopping = threading.Event()

    def __enter__(self) -> LivePointThere:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vbackup-")))
            self._socket = directory / "nbd"
            ours = QemuUser(os.geteuid(), os.getegid())  # ssh connects
            stack.enter_context(LivePoint(self._disks, self._socket, user=ours, locks=None, reporter=self._reporter))
            self._share()
            self._stack = stack.pop_all()
        self._thread = threading.Thread(target=self._watch, name="live-link", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        with suppress(LinkLostError, RemoteError):  # it went with the link
            self._link.end_forward(self._shared)
        self._stack.__exit__(kind, error, traceback)

    @property
    def is_reached(self) -> bool:
        """False while the link is lost."""
        return not self._link.is_lost

    def leave(self) -> None:
        """Nothing survives the link."""

    def _share(self) -> None:
        link = self._host.link(check=self._check)
        self._hold(link)
        self._shared = link.serve_at(self._socket, self._path, uid=self._user.uid, gid=self._user.gid)
        self._link = link

    def _check(self) -> None:
        if self._stopping.is_set():
            raise LinkLostError(self._link.host, "was lost")

    def _watch(self) -> None:
        """Replace the link whenever it is lost, until the block ends.

        In a thread, because a call of libvirt may not return while nobody serves (vbackup.images.live_point).
        """
        while not self._stopping.wait(TICK_S):
            if self._link.is_lost:
                self._reporter.warning(
                    f"The SSH connection to {self._link.host} is lost: the guest waits for what is not at home. vbackup"
                    " tries to connect again."
                )
                if self._share_again():
                    self._reporter.warning(f"Connected to {self._link.host} again: the backup is served.")

    def _share_again(self) -> bool:
        """Return True if the backup is served again, False if the block ends before."""
        while not self._stopping.is_set():
            try:
                self._share()
            except (VbackupError, OSError) as err:  # whatever it is, the guest waits
                log.debug("the backup is not served again: %s", err)
            else:
                return True
            self._stopping.wait(AGAIN_S)
        return False
