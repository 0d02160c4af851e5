"""Write what a machine needs beside disks and XML to the stage of its backup, and say what could not be had."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vbackup.domain import machine_state
from vbackup.domain.definition import Further
from vbackup.domain.machine_state import Found, Unsaved
from vbackup.domain.state_files import UnsavedError
from vbackup.errors import ChainError
from vbackup.model import Backup, LeftOut, MachineFile, MachineKind
from vbackup.report import Reporter
from vbackup.repository import machine_files
from vbackup.repository.repository import Repository, Stage
from vbackup.stop import Stop

#: A file that is at least this large is shared with the backup before it.
SHARED_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Saved:
    """The files in the stage, and what is not among them."""

    files: tuple[MachineFile, ...]
    unsaved: tuple[LeftOut, ...]


def save(
    further: Further, stage: Stage, *, earlier: Backup | None, repository: Repository, reporter: Reporter, stop: Stop
) -> Saved:
    """Write the files; a warning reports each that should be there and cannot be read. Raises StorageError.

    A large file that the backup ``earlier`` has too, and that is good there, takes no room again: it becomes a further
    name of that file.
    """
    files: list[MachineFile] = []
    unsaved: list[Unsaved] = list(further.unsaved)
    for found in further.machine:
        stop.check()
        try:
            one = _save(found, stage, stop)
            files.append(one)
            if earlier is not None and _has(earlier, one, repository, stop):
                stage.share(one.file, repository.directory(earlier.domain_uuid, earlier.id) / one.file)
        except UnsavedError as err:
            left = machine_state.unsaved(found.kind, str(err), dev=found.dev)
            # An installation medium, which is too large each night, is no mishap.
            is_expected = found.kind is MachineKind.MEDIUM and err.is_too_large
            unsaved.append(Unsaved(left, err.is_unexpected and not is_expected))
    for missed in unsaved:
        if missed.is_unexpected:
            reporter.warning(f"The {missed.left_out.dev} is not in the backup: {missed.left_out.reason}.")
    return Saved(tuple(files), tuple(one.left_out for one in unsaved))


def _save(found: Found, stage: Stage, stop: Stop) -> MachineFile:
    name = found.kind.file_name(found.dev)
    digest, size_bytes = stage.write_pieces(name, found.content(), check=stop.check)
    return MachineFile(found.kind, size_bytes, digest, found.path, found.dev, found.image_format)


def _has(earlier: Backup, one: MachineFile, repository: Repository, stop: Stop) -> bool:
    """Return True if an earlier backup has the same large file, undamaged."""
    other = next((other for other in earlier.machine if other.file == one.file), None)
    if other is None or other.digest != one.digest or (one.size_bytes or 0) < SHARED_BYTES:
        return False
    try:
        machine_files.check(repository, earlier, other, stop=stop.check)
    except ChainError:
        return False
    return True


def with_machine(draft: Backup, saved: Saved, further: Further) -> Backup:
    """Return the backup with its machine: what is in it now is not left out, and what is not has its own reason."""
    own = (*further.left_out, *saved.unsaved)
    known = {(left.kind, left.dev) for left in own} | {("disk", one.dev) for one in saved.files if one.dev is not None}
    planned = tuple(left for left in draft.left_out if (left.kind, left.dev) not in known)
    nvram = {one.file: one.digest for one in saved.files if one.kind is MachineKind.NVRAM}  # an older vbackup reads it
    return replace(
        draft,
        files={**draft.files, **nvram},
        machine=saved.files,
        left_out=(*planned, *own),
        autostart=further.autostart,
        loader=further.loader,
    )
