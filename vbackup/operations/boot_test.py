"""Prove that a backup boots: start a copy of its domain that reaches nothing. ``vbackup verify --boot``.

The copy reads the backup through a storage daemon, and what it writes goes to overlays without names, so the repository
stays as it is (vbackup.images.opened_point). The copy has another name and UUID, no network and nothing of the host
(vbackup.domain.boot_copy). It ends with the test, also if vbackup is killed (vbackup.operations.boot_place). The result
and a screenshot are kept with the backup (vbackup.repository.boot_result).
"""

from __future__ import annotations

import os
import time
import uuid as uuids
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import vbackup
from vbackup.domain import boot_copy, boot_watch, screenshot
from vbackup.domain.boot_console import BootConsoles
from vbackup.domain.boot_copy import BootCopy, Place
from vbackup.domain.boot_watch import Goals, Watched
from vbackup.domain.host import DomainHandle, Host
from vbackup.domain.passthrough import Passthrough
from vbackup.errors import ChainError, MalformedError, QmpError, StorageError, UnsuitableError, VbackupError
from vbackup.fields import objects
from vbackup.images.flatten import Layer, layers_of
from vbackup.model import LIVE_XML, NVRAM, Backup, MachineKind
from vbackup.operations import boot_place
from vbackup.operations.boot_place import BootPlace, Exported, Here, Workplace
from vbackup.report import Reporter
from vbackup.repository import boot_result, chosen, history, machine_files, verify
from vbackup.repository.boot_result import BootResult
from vbackup.repository.choice import Wanted
from vbackup.repository.chosen import Chosen
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

#: How long a guest may take, and how much memory a copy gets at most, by default.
TIMEOUT_S, MAX_MEMORY_BYTES = 300.0, 2 * 1024**3
#: A screen of 8K with three bytes for each pixel has 100 MB.
_MAX_PICTURE_BYTES = 128 * 1024 * 1024
#: Where packages, or an administrator, put firmware.
_FIRMWARE_PLACES = ("/usr/share/", "/usr/lib/", "/usr/local/share/")
#: How much of the end of the consoles is kept with the result.
_CONSOLE_CHARACTERS = 4000


@dataclass(frozen=True)
class BootRequest:
    """The options of ``vbackup verify --boot``, for one domain. What is asked for has to be reached, all of it."""

    backup_id: str | None = None  #: None: the newest
    disks: tuple[str, ...] = ()  #: the copy has only these; empty: all
    command: str | None = None  #: to run in the guest
    console: str | None = None  #: a regular expression that the consoles have to match
    screen: bool = False  #: something is on the screen, and the guest has read from its disks
    timeout_s: float = TIMEOUT_S
    max_memory_bytes: int = MAX_MEMORY_BYTES

    @property
    def goals(self) -> Goals:
        """What was asked for, without a choice of vbackup's."""
        return Goals(self.command is not None, self.command, self.console, self.screen)


@dataclass(frozen=True)
class Booted:
    """What the boot test of a backup has shown."""

    uuid: str
    name: str
    backup: Backup
    result: BootResult
    directory: Path  #: of the backup
    is_kept: bool  #: False if the result could not be written, as in a read-only repository


def run(
    request: BootRequest, uuid: str, *, host: Host, repository: Repository, reporter: Reporter, stop: Stop
) -> Booted:
    """Boot a backup of a domain and keep the result. That a guest does not boot is a result.

    Raises what vbackup.repository.chosen.shown raises; UnsuitableError if the copy cannot be tested on this host;
    ChainError if the domain's definition is damaged; MonitorError if libvirt does not start the copy; StorageError;
    StorageDaemonGoneError if an image cannot be opened; InterruptedBySignalError. Nothing is kept then.
    """
    if not host.is_local:
        raise UnsuitableError(
            f"{host.real_uri} is another host, whose QEMU cannot reach the disks of a backup here: run the boot test"
            " there, or with a libvirt of this host (-c qemu:///system)."
        )
    wanted = Wanted(request.backup_id, disks=request.disks)
    with chosen.shown(repository, uuid, wanted, reporter=reporter, stop=stop) as found:
        test = _Test(
            request, found, Here(host, reporter), host=host, repository=repository, reporter=reporter, stop=stop
        )
        result, picture = test.run()
        backup = found.backup
        directory = repository.directory(uuid, backup.id)
        try:
            result, is_kept = boot_result.write(directory, result, picture), True
        except StorageError as err:
            reporter.warning(f"The result of the boot test is not kept with the backup: {err}")
            is_kept = False
    return Booted(uuid, backup.domain_name, backup, result, directory, is_kept)


def of_images(
    request: BootRequest,
    found: Chosen,
    layers: Mapping[str, Sequence[Layer]],
    place: BootPlace,
    *,
    host: Host,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
) -> BootResult:
    """Boot a copy of a backup's domain from other images than the repository's, which stay as they are.

    ``layers``: of each disk (dev), the oldest first; ``place``: the host that has them. Raises as ``run``.
    """
    test = _Test(request, found, place, host=host, repository=repository, reporter=reporter, stop=stop, layers=layers)
    return test.run()[0]


class _Test:
    """The boot test of one backup; ``layers``: of its disks (dev), if they are not those of the repository."""

    def __init__(
        self,
        request: BootRequest,
        found: Chosen,
        place: BootPlace,
        *,
        host: Host,
        repository: Repository,
        reporter: Reporter,
        stop: Stop,
        layers: Mapping[str, Sequence[Layer]] | None = None,
    ) -> None:
        self._request, self._found, self._host, self._other_layers = request, found, host, layers
        self._place, self._repository, self._reporter, self._stop = place, repository, reporter, stop

    def run(self) -> tuple[BootResult, bytes | None]:
        """Do it, and return the result with the picture of the screen at the end."""
        began = time.monotonic()
        uuid = str(uuids.uuid4())
        with ExitStack() as stack:
            place = stack.enter_context(self._place.workplace(uuid))
            copy = self._copy(uuid, place, stack)
            goals = self._goals(copy)
            for remark in copy.remarks:
                self._reporter.step(f"Not in the copy: {remark}.")
            consoles = stack.enter_context(place.consoles(copy.consoles))
            point = stack.enter_context(place.exported(self._layers()))
            self._stop.check()
            machine = stack.enter_context(self._started(copy, consoles, point, place))
            self._reporter.step(f"The copy {copy.name} of backup {self._found.backup.id} runs.")
            watched = boot_watch.watch(machine, goals, timeout_s=self._request.timeout_s)
            picture = machine.last_picture() if copy.has_screen else None
            text = consoles.text()
        return self._result(copy, goals, watched, text, round(time.monotonic() - began, 3)), picture

    def _result(self, copy: BootCopy, goals: Goals, watched: Watched, text: str, duration_s: float) -> BootResult:
        return BootResult(
            time=datetime.now(timezone.utc),
            is_good=watched.failure is None,
            reason=watched.failure or _reached(watched),
            asked={"agent": goals.agent, "exec": goals.command, "console": goals.console, "screen": goals.screen},
            agent_s=watched.agent_s,
            exec_s=watched.command_s,
            exec_status=watched.command_status,
            exec_output=watched.command_output,
            console_s=watched.console_s,
            screen_s=watched.screen_s,
            duration_s=duration_s,
            timeout_s=self._request.timeout_s,
            disks=tuple(self._found.chains),
            remarks=copy.remarks,
            console_end=text[-_CONSOLE_CHARACTERS:],
            versions={"vbackup": vbackup.__version__, "libvirt": self._host.libvirt_version},
        )

    def _goals(self, copy: BootCopy) -> Goals:
        """Return what was asked for, or what can show best that the copy has booted. Raises UnsuitableError."""
        goals = self._request.goals
        least = boot_watch.MIN_READ_OF_DIRECT_BOOT_BYTES if copy.is_direct_boot else boot_watch.MIN_READ_BYTES
        if goals == Goals():
            goals = Goals(agent=copy.has_agent, screen=not copy.has_agent)
            if not copy.has_agent and not copy.has_screen:
                raise self._unsuitable(
                    "has neither a channel for the guest agent nor a screen: say with --boot-console what appears on"
                    " its serial console when it has booted"
                )
        if goals.agent and not copy.has_agent:
            raise self._unsuitable("has no channel for the guest agent, which --boot-exec needs")
        if goals.screen and not copy.has_screen:
            raise self._unsuitable("has no screen for --boot-screen")
        if goals.console is not None and not copy.consoles:
            raise self._unsuitable("has no serial console for --boot-console")
        return Goals(goals.agent, goals.command, goals.console, goals.screen, min_read_bytes=least)

    def _unsuitable(self, what: str) -> UnsuitableError:
        return UnsuitableError(f"Domain {self._found.backup.domain_name} {what}.")

    # what the copy has

    def _copy(self, uuid: str, place: Workplace, stack: ExitStack) -> BootCopy:
        """Return the copy, with its files in the place, and its TPM until the end of ``stack``.

        Raises ChainError, UnsuitableError, StorageError.
        """
        backup, choice = self._found.backup, self._found.choice
        texts = {name: verify.read_file(self._repository, backup, name) for name in backup.files if name != NVRAM}
        if "domain.xml" not in texts:
            raise ChainError(f"The manifest of backup {backup.id} lists no domain.xml, but every backup has one.")
        definition = texts["domain.xml"].decode(errors="replace")
        nvram = next((one for one in backup.machine_files if one.kind is MachineKind.NVRAM), None)
        nvram_format = None if nvram is None else machine_files.nvram_format(self._repository, backup, nvram)
        self._take(MachineKind.NVRAM, place)
        directory = place.directory
        try:
            tpm = stack.enter_context(place.tpm(backup, definition, repository=self._repository, stop=self._stop))
            parts = Place(
                os.fspath(directory / boot_place.SOCKET),
                os.fspath(directory),
                boot_files=self._boot_files(definition, place),
                nvram=os.fspath(directory / NVRAM),
                nvram_format=nvram_format,
                has_tpm=tpm.is_there,
                why_no_tpm=tpm.why_not,
            )
            copy = boot_copy.make(
                definition,
                texts[LIVE_XML].decode(errors="replace") if LIVE_XML in texts else None,
                {dev: history.image_of(one, dev).source for dev, one in choice.disks.items()},
                parts,
                uuid=uuid,
                max_memory_bytes=self._request.max_memory_bytes,
            )
        except MalformedError as err:
            raise ChainError(f"The domain.xml of backup {backup.id} is not valid: {err}") from err
        if copy.firmware is not None:
            self._refuse_strange(copy.firmware, place)
        return copy

    def _refuse_strange(self, firmware: str, place: Workplace) -> None:
        """Raise UnsuitableError for a <loader> that no package brings: its path comes from the repository.

        QEMU's user can read images of other guests, and the copy's guest could read them as firmware.
        """
        for path in (firmware, place.real_path(firmware)):  # in other directories, links can change after this
            if ".." in path.split("/") or not path.startswith(_FIRMWARE_PLACES):
                raise self._unsuitable(
                    f"has the firmware {firmware}, and a copy only gets firmware below {' or '.join(_FIRMWARE_PLACES)}:"
                    " no boot test on this host"
                )

    def _boot_files(self, definition: str, place: Workplace) -> dict[str, str]:
        """Copy what the domain boots directly: libvirt changes the owner of a file that it boots."""
        copies = {}
        for name, path in boot_copy.boot_files(definition).items():
            if not self._take(MachineKind(name), place):
                why = place.copy_host_file(Path(path), name)
                if why is not None:
                    raise self._unsuitable(f"boots the {name} {path} of the host, which is not in the backup and {why}")
                self._reporter.step(f"The {name} is not in the backup: that of the host is used, {path}.")
            copies[name] = os.fspath(place.directory / name)
        return copies

    def _take(self, kind: MachineKind, place: Workplace) -> bool:
        """Copy a file of the backup for QEMU; False if the backup has no such file."""
        backup = self._found.backup
        one = next((one for one in backup.machine_files if one.kind is kind), None)
        if one is None:
            return False
        place.put(
            one.file,
            lambda path: machine_files.write(self._repository, backup, one, path, stop=self._stop.check),
        )
        return True

    def _layers(self) -> Mapping[str, Sequence[Layer]]:
        """Return the images of each disk, the oldest first."""
        if self._other_layers is not None:
            return self._other_layers
        repository = self._repository
        return {dev: layers_of(self._found.paths(repository, dev), repository.served) for dev in self._found.chains}

    @contextmanager
    def _started(self, copy: BootCopy, consoles: BootConsoles, point: Exported, place: Workplace) -> Iterator[_Machine]:
        """Run the copy during the block."""
        try:
            handle = self._host.start_transient(copy.xml)
        except VbackupError:
            place.act()  # a connection that broke does not say whether the copy runs
            raise
        try:
            with Passthrough(handle) as monitor:
                yield _Machine(handle, monitor, consoles, point, self._stop)
        finally:
            try:
                handle.destroy()
            except VbackupError as err:
                place.act()
                self._reporter.step(f"libvirt did not end the copy, and its QEMU is killed: {err}")


class _Machine:
    """A copy that runs (vbackup.domain.boot_watch.Copy)."""

    def __init__(
        self, handle: DomainHandle, monitor: Passthrough, consoles: BootConsoles, point: Exported, stop: Stop
    ) -> None:
        self._handle, self._monitor, self._consoles = handle, monitor, consoles
        self._point, self._stop = point, stop
        self.agent = monitor.agent
        self.console = consoles.text
        self.is_active = handle.is_active

    def read_bytes(self) -> int:
        """Return how much the guest has read of its disks (query-blockstats)."""
        try:
            entries = list(objects(self._monitor.execute("query-blockstats"), "query-blockstats", MalformedError))
            return sum(entry.object("stats").integer("rd_bytes") for entry in entries)
        except (QmpError, MalformedError):
            return 0

    def picture(self) -> bytes:
        """Return the screen as PNG. Raises MonitorError, MalformedError."""
        return screenshot.png(self._handle.screenshot(max_bytes=_MAX_PICTURE_BYTES))

    def last_picture(self) -> bytes | None:
        """Return the screen as PNG, None if there is none any more."""
        try:
            return self.picture()
        except VbackupError:
            return None

    def wait(self, timeout_s: float) -> None:
        """Return after that time. Raises InterruptedBySignalError, StorageDaemonGoneError."""
        self._point.wait(self._stop, timeout_s=timeout_s)
        self._stop.check()


def _reached(watched: Watched) -> str:
    """Return in a sentence what has shown that the guest has booted."""
    found = []
    if watched.agent_s is not None:
        found.append(f"its agent answered after {watched.agent_s:g} s")
    if watched.command_s is not None:
        found.append(f"the command had exited with status 0 after {watched.command_s:g} s")
    if watched.console_s is not None:
        found.append(f"its console matched after {watched.console_s:g} s")
    if watched.screen_s is not None:
        found.append(f"it had read its disks and its screen was in use after {watched.screen_s:g} s")
    return f"The guest booted: {', '.join(found)}."
