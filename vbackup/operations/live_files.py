"""Write the files of a domain that is restored live, and remove them: images, machine, definition, and the record.

Each image is an overlay above the export of the backup, and has, for the original, the bitmap of the restored
checkpoint, which records what the guest writes from the beginning. The data that comes home is no change, and QEMU does
not record it as one: the copy-on-read of a block job calls the driver itself (bdrv_co_do_copy_on_readv in QEMU's
block/io.c), below where bitmaps are set.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from vbackup import files
from vbackup.domain import domain_xml
from vbackup.domain.host import DomainHandle
from vbackup.domain.passthrough import Passthrough
from vbackup.engine import restored_checkpoint
from vbackup.engine.restored_checkpoint import RestoredImage
from vbackup.errors import VbackupError
from vbackup.files import storage_errors
from vbackup.images import destination
from vbackup.operations import restore, restored_machine
from vbackup.operations.restored_machine import Placed
from vbackup.qemu import qemu_img
from vbackup.qemu.monitor import block_graph
from vbackup.report import Reporter
from vbackup.repository import live_state
from vbackup.repository.chosen import Chosen
from vbackup.repository.live_state import LiveState
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Writing:
    """What the files are made of."""

    found: Chosen
    machine: Sequence[Placed]
    text: str  #: the domain's XML
    checkpoint: bool  #: the images get the bitmap of the restored checkpoint
    repository: Repository
    reporter: Reporter
    stop: Stop


def backing(state: LiveState, dev: str) -> str:
    """Return what the header of a disk's image names as its backing file.

    Whoever opens the image without vbackup is refused then, and does not take holes for zeros.
    """
    return f"nbd+unix:///{quote(dev)}?socket={quote(os.fspath(state.socket))}"


def write(state: LiveState, what: Writing) -> None:
    """Write all files of the domain; live.json gets its name last.

    Raises ChainError, StorageError, NoSpaceError, InterruptedBySignalError; nothing is left then.
    """
    found, repository, reporter, stop = what.found, what.repository, what.reporter, what.stop
    with ExitStack() as stack:
        directories: dict[Path, Path] = {}
        for directory in (state.output, *(state.image(dev).parent for dev in state.disks)):
            if directory not in directories:
                directories[directory] = stack.enter_context(destination.temporary_directory(directory))
        temporary = directories[state.output]
        images = {dev: directories[state.image(dev).parent] / state.image(dev).name for dev in state.disks}
        for dev, path in images.items():
            restore.write(path, b"")
            qemu_img.create_over(path, found.chains[dev][0].image.virtual_size_bytes, backing=backing(state, dev))
            files.fsync(path)
        if what.checkpoint and state.is_original:
            restored_checkpoint.add(
                [RestoredImage(dev, found.choice.disks[dev], path, state.image(dev)) for dev, path in images.items()],
                uuid=state.original,
                repository=repository,
                reporter=reporter,
                stop=stop,
            )
        restored_machine.write(what.machine, found.backup, temporary, repository=repository, stop=stop)
        restore.write(temporary / "domain.xml", what.text.encode())
        restore.write(temporary / live_state.FILE, state.text().encode())
        stop.check()
        moves = [(path, state.image(dev)) for dev, path in images.items()]
        moves += [(temporary / name, state.output / name) for name in (*state.files, live_state.FILE)]
        destination.move_out(moves)


def remove(state: LiveState) -> None:
    """Remove all files that the restore has made, and the output directory if it is empty then.

    live.json comes after them, and the file with the lock last: until then it can be done again.
    """
    with storage_errors(f"remove the files of the live restore to {state.output}"):
        for dev in state.disks:
            state.image(dev).unlink(missing_ok=True)
        for name in (*state.files, *state.later):
            if name == live_state.LOCKED:
                continue
            path = state.output / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)  # the state of a TPM
            else:
                path.unlink(missing_ok=True)
        state.socket.unlink(missing_ok=True)
        live_state.remove(state.output)
        (state.output / live_state.LOCKED).unlink(missing_ok=True)
        if not any(state.output.iterdir()):
            state.output.rmdir()


def checkpoints(handle: DomainHandle, state: LiveState, repository: Repository) -> list[str]:
    """Return the disks (dev) that still have the bitmap of the restored checkpoint, none if QEMU does not say.

    The death of a QEMU makes it inconsistent. A domain that is off by now is not asked.
    """
    if not state.is_original:
        return []
    try:
        if not handle.is_active():
            return []
        history = repository.catalogue(state.original).history
        disks = {disk.dev: disk for disk in domain_xml.parse(handle.live_xml()).disks}
        with Passthrough(handle) as monitor:
            graph = block_graph(monitor)
        found = []
        for dev in filter(disks.__contains__, state.disks):  # one may have been detached by now
            known, bitmaps = history.restored_bitmaps(dev), graph.disk_node(disks[dev]).top.bitmaps
            if any(one.recording and not one.inconsistent for name, one in bitmaps.items() if name in known):
                found.append(dev)
        return found
    except VbackupError as err:  # the restore has ended, and the next backup finds out by itself
        log.debug("no checkpoints: %s", err)
        return []
