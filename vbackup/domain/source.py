"""Where a domain's disks are read from: its running QEMU, or a storage daemon while it is off.

The same queries, transactions and jobs go to either. What differs is here: how disks are found or opened, and what the
guest has to do with it. Operations do not ask which class a Source is. They ask is_running where the user reads
something else, or where something makes sense only with a guest: a fleecing area, a limit on latency, detached disks.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

from vbackup import process
from vbackup.domain import chain_states, detached, domain_xml
from vbackup.domain.access import Access
from vbackup.domain.freeze import Freeze, Thawer, frozen, thaw_leftover, without_freeze
from vbackup.domain.freeze_turn import FreezeTurn
from vbackup.domain.host import DomainHandle
from vbackup.domain.passthrough import Passthrough
from vbackup.domain.thaw_there import ThawThere
from vbackup.domain.watchdog import Watchdog
from vbackup.errors import BusyError, UnsuitableError, VbackupError
from vbackup.model import (
    Disk,
    DiskNode,
    Domain,
    FreezeMark,
    Layer,
    Quiesce,
)
from vbackup.process import OpenFiles
from vbackup.qemu import device_mark
from vbackup.qemu.activity import refuse_inactive
from vbackup.qemu.monitor import Monitor, block_graph
from vbackup.report import Reporter

if TYPE_CHECKING:
    from vbackup.remote.link import Link

log = logging.getLogger(__name__)


class Source(Protocol):
    """An opened domain."""

    @property
    def handle(self) -> DomainHandle:
        """The domain in libvirt."""

    @property
    def domain(self) -> Domain:
        """What its XML said when the source was opened."""

    @property
    def monitor(self) -> Monitor:
        """The QEMU that has its disks."""

    @property
    def is_running(self) -> bool:
        """True if a guest uses the disks: it can be frozen and slowed down, and libvirt can detach a disk."""

    def has_ended(self) -> bool:
        """Return True if the domain was running and is not any more; False also if libvirt does not answer."""

    def close_detached(self, nodes: Mapping[str, str]) -> list[str]:
        """Close the disks that were detached while our jobs read them; return their devs.

        ``nodes`` maps dev to the node name of the disk's active layer when the jobs began. The jobs have ended. A QEMU
        that is gone or cannot be asked has none.
        """

    def disk_nodes(self, disks: Sequence[Disk]) -> list[DiskNode]:
        """Return the disks' layers and bitmaps as they are now, in the order of ``disks``.

        Raises DiskError for a disk that cannot be found or opened, BusyError if another program has its image open.
        """

    def open_files(self) -> OpenFiles | None:
        """Return the files that the process with the disks has open, None if that cannot be found out here.

        A name proves nothing: another file may have it by now.
        """

    def look_at(self, nodes: Sequence[DiskNode]) -> list[DiskNode]:
        """Return the disks with what is known of the files of their layers now (``DiskNode.looked_at``)."""

    def mark_devices(self, disks: Sequence[Disk]) -> None:
        """Mark the disks' devices, so that a later ``look_at`` shows whether they have been there all the time."""

    def writable(self, layer: Layer) -> AbstractContextManager[None]:
        """Keep a layer, which may be below the active one, open for writing while the block runs, if that is possible.

        Raises QmpError if QEMU refuses, UnsuitableError if it may not be written (``reason_not_to_write``).
        """

    def reason_not_to_write(self, layer: Layer) -> str | None:
        """Return why the image of a layer may not be written, although QEMU might: somebody else may have it open."""

    def locked_out(self) -> BusyError:
        """Return the error that says why an image is locked: the domain was started, or who has it open."""

    def unchanged(self) -> AbstractContextManager[None]:
        """Notice at the end of the block that an image which is only read was changed by others: raises BusyError.

        The disk would be of no one moment. A running domain's QEMU has its images, and keeps others out.
        """

    def prepare_freeze(self, quiesce: Quiesce, *, limit_s: int) -> None:
        """Start what thaws if vbackup cannot (the Thawer), so that it is ready in time; it ends with the source.

        A guest that does not run is not prepared for: call it again just before the freeze. ``limit_s`` is how long the
        guest may be frozen, in seconds.
        """

    @property
    def freeze_mark(self) -> FreezeMark:
        """How a later run can tell whether the freeze that is prepared has been carried out."""

    def frozen(
        self, quiesce: Quiesce, reporter: Reporter, *, link: Link | None = None
    ) -> AbstractContextManager[Freeze]:
        """Keep the guest's filesystems frozen while the block runs, if ``prepare_freeze`` has prepared that.

        With a ``link`` to the domain's host they are also thawed there if the link is lost, which raises LinkLostError.
        Raises QuiesceError if freezing is required and fails.
        """

    def thaw(self, reporter: Reporter, *, mark: FreezeMark) -> None:
        """Thaw the guest's filesystems if a dead run may have left them frozen; ``mark`` is what it recorded."""

    def is_guest_stopped(self) -> bool:
        """Return True if an I/O error has stopped the guest."""

    def resume(self, reporter: Reporter, *, guest_was_stopped: bool) -> None:
        """Resume the guest if our jobs, which have ended, stopped it.

        ``guest_was_stopped``: an I/O error had stopped it before the jobs began.
        """


@contextmanager
def open_source(handle: DomainHandle, *, reporter: Reporter, access: Access | None = None) -> Iterator[Source]:
    """Open the domain's disks: in its QEMU if it is running or paused, else in a storage daemon, as ``access`` allows.

    Raises UnsuitableError if a domain that is off is on another host that no link leads to, or the storage daemon is
    not installed;
    MigratingError while the domain is migrated, InactiveError if QEMU does not have its images to itself.
    """
    if handle.is_active():
        handle.refuse_migration()
        with Passthrough(handle) as monitor:
            refuse_inactive(monitor, f"Domain {handle.name}", resume=f"'{handle.virsh('resume')}'")
            running = RunningSource(
                handle, domain_xml.parse(handle.live_xml()), monitor, check=(access or Access()).check
            )
            try:
                yield running
            finally:
                running.close()
        return
    if not handle.host.is_local and not handle.host.has_link:
        raise UnsuitableError(
            f"Domain {handle.name} is off, and its images are on another host, which is not reached by SSH: run vbackup"
            " on that host, or start the domain."
        )
    from vbackup.domain import offline  # a running domain does without a storage daemon

    with offline.open_off(handle, reporter=reporter, access=access or Access()) as off:
        yield off


class RunningSource:
    """The disks of a domain that has a QEMU: running, or paused. ``check`` raises if vbackup is asked to stop."""

    def __init__(
        self, handle: DomainHandle, domain: Domain, monitor: Passthrough, *, check: Callable[[], None] = lambda: None
    ) -> None:
        self.handle = handle
        self.domain = domain
        self._monitor = monitor
        self._check = check
        self._watchdog: Watchdog | None = None

    def close(self) -> None:
        """Wait for the watchdog to end, if there is one and nothing is left for it to do."""
        if self._watchdog is not None:
            self._watchdog.close()

    @property
    def monitor(self) -> Monitor:
        """The domain's QEMU, through libvirt."""
        return self._monitor

    @property
    def is_running(self) -> bool:
        """Always True."""
        return True

    def has_ended(self) -> bool:
        """Ask libvirt whether the domain still has a QEMU."""
        try:
            return not self.handle.is_active()
        except VbackupError as err:
            log.debug("%s", err)
            return False

    def close_detached(self, nodes: Mapping[str, str]) -> list[str]:
        """Close what libvirt could not close while the jobs ran."""
        try:
            return detached.close_detached(self._monitor, nodes)
        except VbackupError as err:
            log.debug("%s", err)
            return []

    def disk_nodes(self, disks: Sequence[Disk]) -> list[DiskNode]:
        """Find each disk in QEMU's block graph by its device alias."""
        graph = block_graph(self._monitor)
        return [graph.disk_node(disk) for disk in disks]

    def open_files(self) -> OpenFiles | None:
        """Look into /proc, if QEMU is on this host."""
        pid = chain_states.pid_of(self._monitor, self.handle.uuid) if self.handle.host.is_local else None
        return None if pid is None else process.open_files(pid)

    def look_at(self, nodes: Sequence[DiskNode]) -> list[DiskNode]:
        """Look at the files, if they are on this host; what QEMU has open is asked for only where it counts."""
        marks, is_local = device_mark.read(self._monitor), self.handle.host.is_local
        files = self.open_files() if any(chain_states.needs_open_files(one) for one in nodes) else None
        looked_at = []
        for one in nodes:
            mark = marks.get(one.disk.alias)
            if is_local:
                chain = chain_states.of_this_host(one, mark=mark, open_files=files)
            else:
                chain = chain_states.of_other_host(one, mark=mark)
            looked_at.append(dataclasses.replace(one, looked_at=chain))
        return looked_at

    def mark_devices(self, disks: Sequence[Disk]) -> None:
        """Mark those that have no mark yet."""
        device_mark.ensure(self._monitor, [disk.alias for disk in disks])

    def writable(self, layer: Layer) -> AbstractContextManager[None]:
        """Change nothing: QEMU may not write the file of a layer below, and only libvirt can change that."""
        return nullcontext()

    def reason_not_to_write(self, layer: Layer) -> str | None:
        """Return None: QEMU has the images, and writes what it has open for writing."""
        return None

    def unchanged(self) -> AbstractContextManager[None]:
        """Look at nothing."""
        return nullcontext()

    def locked_out(self) -> BusyError:
        """Say what little is known: QEMU does not say which image it is."""
        return BusyError("Another process has an image open that QEMU needs; run the same command again.")

    def prepare_freeze(self, quiesce: Quiesce, *, limit_s: int) -> None:
        """Start the watchdog if a freeze is to be tried: with an agent that can answer, unless ``quiesce`` is no."""
        if self._watchdog is not None or quiesce is Quiesce.NO:
            return
        if self.domain.agent_connected and self.handle.halted() is None:
            host = self.handle.host
            self._watchdog = Watchdog(
                uri=host.real_uri,
                uuid=self.handle.uuid,
                limit_s=limit_s,
                is_blind=host.is_embedded,
                check=self._check,
            )

    @property
    def freeze_mark(self) -> FreezeMark:
        """With a watchdog, what it remembers."""
        if self._watchdog is None:
            return FreezeMark.NONE
        return FreezeMark.MARKED if self._watchdog.marks else FreezeMark.UNMARKED

    @contextmanager
    def frozen(self, quiesce: Quiesce, reporter: Reporter, *, link: Link | None = None) -> Iterator[Freeze]:
        """Freeze through the guest agent, with the watchdog standing by; not if the guest cannot run."""
        is_wanted = self.domain.agent_connected and quiesce is not Quiesce.NO
        halted = self.handle.halted() if is_wanted else None
        if halted is None and is_wanted and self._watchdog is None:
            halted = "just being resumed"  # a freeze that was not prepared would be missing in the journal
        if halted is not None:
            yield without_freeze(quiesce, reporter, halted=halted, virsh=self.handle.virsh)
            return
        try:
            thawer: Thawer | None = self._watchdog
            if link is not None and thawer is not None:
                thawer = ThawThere(thawer, link, self.handle.uuid)
            with frozen(self._monitor, quiesce, thawer=thawer, reporter=reporter, virsh=self.handle.virsh) as freeze:
                yield freeze
        finally:
            if self._watchdog is not None:
                self._watchdog.let_go()  # copying can take hours

    def thaw(self, reporter: Reporter, *, mark: FreezeMark) -> None:
        """Ask the guest agent to thaw, if there is one that can answer and it was a vbackup that froze."""
        if mark is FreezeMark.NONE or not self.domain.agent_connected:
            return
        turn = FreezeTurn(self.handle.uuid)
        try:
            if not turn.take():
                reporter.step(
                    "Another vbackup is freezing the guest, or the watchdog of one that was killed is thawing it; the"
                    " guest's freeze is left to it."
                )
                return
            is_ours = turn.may_be_left_frozen() if mark is FreezeMark.MARKED and turn.marks else True
            halted = self.handle.halted() if is_ours else None
            if halted is not None:
                reporter.warning(
                    f"The domain is {halted}, so its guest agent cannot tell whether an interrupted backup left"
                    f" filesystems frozen. When the domain runs again, '{self.handle.virsh('domfsthaw')}' thaws them."
                )
            elif thaw_leftover(self._monitor, reporter, is_ours=is_ours, virsh=self.handle.virsh):
                turn.thawed()
        finally:
            turn.close()

    def is_guest_stopped(self) -> bool:
        """Ask libvirt why the domain is paused."""
        return self.handle.is_paused_by_io_error()

    def resume(self, reporter: Reporter, *, guest_was_stopped: bool) -> None:
        """Resume the domain if it is stopped by an I/O error now and was not before.

        While a job runs, QEMU writes the old data to the target before it carries out the guest's write. If it cannot,
        the guest's write fails with the target's errno. QEMU stops the guest then if that is ENOSPC (werror=enospc, its
        default) or if the disk has error_policy='stop'. When the job is gone the write can be retried, which resuming
        does. Under every other policy the guest has seen the error.
        """
        if not guest_was_stopped and self.is_guest_stopped():
            self.handle.resume()
            reporter.warning(
                "The guest was stopped because QEMU could not save in the repository what it was about to overwrite. It"
                " is running again, and none of its writes was lost."
            )
