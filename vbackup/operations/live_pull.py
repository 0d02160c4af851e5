"""Start a domain that is being restored live, and follow its data home, whatever ends on the way.

vbackup.operations.live_restore begins with it, vbackup.operations.live_resume goes on.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from vbackup.domain import defining, domain_xml, lifecycle, live_xml
from vbackup.domain.host import DomainHandle
from vbackup.domain.lifecycle import Pull
from vbackup.domain.passthrough import Passthrough
from vbackup.engine import live_backing
from vbackup.engine.live_backing import Overlay
from vbackup.errors import (
    ConnectionLostError,
    InterruptedBySignalError,
    LinkLostError,
    LiveRestoreEndedError,
    MonitorError,
    NoSpaceError,
    QemuGoneError,
    Retry,
    UnsuitableError,
    VbackupError,
    command,
    domain_argument,
)
from vbackup.images.live_point import Serving
from vbackup.operations.live_place import Place
from vbackup.report import Phase, Reporter
from vbackup.repository.live_state import LiveState
from vbackup.stop import Stop

Overlays = Mapping[str, Overlay]  # by dev

#: The longest time between two looks at the pulls.
TICK_S = 0.25
#: How long a guest that boots may go on without a pull beside it, which would take processor and storage from it. It
#: is over when the guest's agent is connected; a domain without a channel for one gets none.
HEAD_START_S = 60.0
#: How often a pull may end early in a row without having copied anything.
_ATTEMPTS = 3
#: How many times in a row the connection to libvirt may be lost.
_MAX_LOSSES = 3
#: Less room than this, and a failed write is taken for a lack of it.
_FULL_BYTES = 16 * 1024 * 1024


def advice(state: LiveState) -> str:
    """Return how to go on, as a sentence."""
    where = "" if state.uri is None else f"-c {shlex.quote(state.uri)} "
    words = f"vbackup {where}restore {state.uuid} --live --resume --output {shlex.quote(str(state.output))}"
    return f"'{words}' goes on; the domain starts then if it is off."


def strange(xml: str, state: LiveState) -> list[str]:
    """Return the disks (dev) of the restore that have another active image in the XML than the restore's, or none."""
    images = live_xml.images(xml)
    return [dev for dev in state.disks if images.get(dev) != os.fspath(state.image(dev))]


def refuse_strange(name: str, xml: str, state: LiveState, devs: Collection[str]) -> None:
    """Raise UnsuitableError if one of these disks has another active image in the domain's XML than the restore's."""
    for dev in strange(xml, state):
        if dev in devs:
            base = shlex.quote(str(state.image(dev)))
            words = f"virsh blockcommit {domain_argument(name)} {dev} --base {base} --active --pivot"
            raise UnsuitableError(
                f"Domain {name} does not use {state.image(dev)} as its disk {dev} (it has"
                f" {live_xml.images(xml).get(dev, 'none')}). If that is a snapshot on top of it,"
                f" '{command(words, state.uri)}' ends the snapshot, and keeps what is in it."
            )


def start(handle: DomainHandle, state: LiveState) -> Overlays:
    """Start the domain, which is off, with a node that reconnects below each disk, and let the guest run."""
    lifecycle.start_paused(handle)
    overlays = secure(handle, state)
    handle.resume()
    return overlays


def secure(handle: DomainHandle, state: LiveState) -> Overlays:
    """Put the node that reconnects below each disk whose data is not at home, and return these. No pull may run."""
    xml, socket = handle.live_xml(), os.fspath(state.socket)
    refuse_strange(handle.name, xml, state, state.away)
    aliases = {disk.dev: disk.alias for disk in domain_xml.parse(xml).disks}
    pending = live_xml.pending(xml, socket)
    found = {}
    with Passthrough(handle) as monitor:
        for dev in state.away:
            found[dev] = live_backing.overlay(monitor, dev, aliases[dev], live_xml.format_options(xml, dev))
            if dev in pending:
                live_backing.put_below(monitor, found[dev], socket)
    return found


def home(
    handle: DomainHandle,
    state: LiveState,
    overlays: Overlays,
    *,
    speed_bytes_s: int | None,
    boots: bool,
    place: Place,
    reporter: Reporter,
    stop: Stop,
) -> None:
    """Return when all data is at home. ``overlays``: as ``secure`` returns them; ``boots``: the guest has just started.

    ``place`` has the images.

    Raises LiveRestoreEndedError if the domain ends before; NoSpaceError or another VbackupError if the data of a disk
    cannot be brought home, and InterruptedBySignalError.
    """
    with Passthrough(handle) as monitor:
        head_start_s = HEAD_START_S if boots else 0
        _Pulls(handle, state, overlays, monitor, reporter, place=place, head_start_s=head_start_s).follow(
            speed_bytes_s, stop
        )


@contextmanager
def guarded(
    handle: DomainHandle, state: LiveState, point: Serving, reporter: Reporter, *, is_resumed: bool = False
) -> Iterator[None]:
    """If the block fails, pause the guest; if that fails too, leave it what serves its disks.

    Unless the command is the one that resumes a live restore (``is_resumed``), the same one would be refused then.
    """
    try:
        yield
    except BaseException as err:
        is_on = _is_active(handle)
        if is_on is False:
            if isinstance(err, QemuGoneError):
                raise LiveRestoreEndedError(state.name, advice=advice(state)) from err
        elif not _pause(handle, state, point, reporter):
            point.leave()
        if isinstance(err, VbackupError) and not is_resumed:
            err.retry = Retry.NEVER
        if isinstance(err, InterruptedBySignalError):
            where = f"the live restore of domain {state.name} is not finished"
            raise InterruptedBySignalError(err.signum, state=where, retry=err.retry) from err
        raise


def make_plain(handle: DomainHandle, state: LiveState, place: Place) -> None:
    """Make the definition what it would be after any other restore."""
    original = place.domain_xml(state)
    defining.define(handle.host, live_xml.plain(handle.definition_xml(), original, tuple(state.disks)))


def _is_active(handle: DomainHandle) -> bool | None:
    """Return whether the domain has a QEMU, None if libvirt does not say."""
    try:
        return handle.is_active()
    except VbackupError:
        return None


def _pause(handle: DomainHandle, state: LiveState, point: Serving, reporter: Reporter) -> bool:
    """Pause the guest while the daemon still serves it: without it, QEMU would wait for the end of its reads.

    Return False if the guest may still run.
    """
    if not point.is_reached:
        reporter.warning(f"Domain {state.name} is not paused. {point.after} {advice(state)}")
        return False
    try:
        for dev in state.disks:
            lifecycle.end_pull(handle, dev)
        lifecycle.suspend(handle)
    except VbackupError as err:
        if _is_active(handle) is False:
            return True
        reporter.warning(f"Could not pause domain {state.name}: {err} {point.after} {advice(state)}")
        return False
    reporter.warning(f"Domain {state.name} is paused. {advice(state)}")
    return True


class _Pulls:
    """The pulls of the disks, one after the other.

    When one has ended, libvirt asks for all nodes, and at the end of another one that crashes QEMU (see Overlay).
    """

    def __init__(
        self,
        handle: DomainHandle,
        state: LiveState,
        overlays: Overlays,
        monitor: Passthrough,
        reporter: Reporter,
        *,
        place: Place,
        head_start_s: float = 0,
    ) -> None:
        self._handle, self._state, self._overlays = handle, state, overlays
        self._monitor, self._place, self._reporter = monitor, place, reporter
        self._attempts: dict[str, int] = {}
        self._done_bytes: dict[str, int] = {}
        self._head_start_until_s = time.monotonic() + head_start_s

    def follow(self, speed_bytes_s: int | None, stop: Stop) -> None:
        """Return when all data of all disks is at home."""
        losses = 0
        while True:
            stop.check()
            try:
                self._step(speed_bytes_s)
                if not self._state.away:
                    return
                losses = 0
            except (ConnectionLostError, LinkLostError) as err:
                losses += 1
                if losses > _MAX_LOSSES:
                    raise
                if isinstance(err, ConnectionLostError):  # the next use of the link makes another one
                    self._handle.reconnect()
            self._monitor.next_event(TICK_S)

    def _step(self, speed_bytes_s: int | None) -> None:
        """Start the next pull, report how far it is, or record its end."""
        dev = self._state.away[0]
        try:
            pull = lifecycle.pull_of(self._handle, dev)
            if pull is not None:
                self._report(dev, pull)
            elif dev in live_xml.pending(self._handle.live_xml(), os.fspath(self._state.socket)):
                self._start(dev, speed_bytes_s)
            else:
                self._keep(dev)
        except MonitorError:
            if self._handle.is_active():
                raise
        if not self._handle.is_active():
            raise LiveRestoreEndedError(self._state.name, advice=advice(self._state))

    def _report(self, dev: str, pull: Pull) -> None:
        if pull.done_bytes > self._done_bytes.get(dev, 0):  # further than any attempt before
            self._attempts[dev], self._done_bytes[dev] = 0, pull.done_bytes
        self._reporter.progress(dev, Phase.COPY, pull.done_bytes, pull.total_bytes)

    def _start(self, dev: str, speed_bytes_s: int | None) -> None:
        if time.monotonic() < self._head_start_until_s and live_xml.waits_for_agent(self._handle.live_xml()):
            return
        self._head_start_until_s = 0
        self._attempts[dev] = self._attempts.get(dev, 0) + 1
        if self._attempts[dev] > _ATTEMPTS:
            raise self._failed(dev)
        refuse_strange(self._handle.name, self._handle.live_xml(), self._state, [dev])
        lifecycle.start_pull(self._handle, dev, speed_bytes_s)

    def _keep(self, dev: str) -> None:
        """Record that all data of a disk is at home, once it is on storage."""
        live_backing.store(self._monitor, self._overlays[dev])
        live_backing.remove(self._monitor, dev)
        self._place.flush(self._state.image(dev))  # with cache='unsafe' QEMU flushes nothing
        self._state = replace(self._state, home=self._state.home | {dev})
        self._place.record(self._state)
        self._reporter.step(f"Disk {dev}: its data is at home.")

    def _failed(self, dev: str) -> VbackupError:
        _device, directory, free_bytes = self._place.room(self._state.image(dev))
        if free_bytes < _FULL_BYTES:
            return NoSpaceError(
                f"Disk {dev}: no space left in {directory} for its data. Free some space; {advice(self._state)}"
            )
        return MonitorError(
            f"Disk {dev}: its data cannot be brought home; the log of QEMU in /var/log/libvirt/qemu may say why."
            f" {advice(self._state)}"
        )
