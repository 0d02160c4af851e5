"""End what a dead restore in place has left: undo it, put the last images into their places, or run it again in full.

Meanwhile the domain may have been started, and images moved. So what is not as the journal has recorded it is never
removed, and nothing that would lose its name is replaced.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vbackup.domain import domain_xml
from vbackup.domain.host import DomainHandle
from vbackup.errors import BusyError, UnsuitableError
from vbackup.operations import rollback
from vbackup.operations.in_place_host import Place
from vbackup.report import Reporter
from vbackup.repository import in_place_journal
from vbackup.repository.in_place_journal import Entry, Replaced, Seen, Step
from vbackup.repository.repository import Repository


@dataclass(frozen=True)
class Settled:
    """What a restore in place finds after a dead one was ended."""

    is_resumed: bool = False  #: some disks may be rolled back and others not: the journal stays until all are written
    finished: Mapping[str, Replaced] = field(default_factory=dict)  #: by dev: new images that nobody has written to


def settle(
    handle: DomainHandle,
    devs: Collection[str],
    place: Place,
    *,
    keep_old: bool,
    repository: Repository,
    reporter: Reporter,
) -> Settled:
    """End what a dead run has left, before a restore in place of the disks in ``devs``, whose images ``place`` has.

    ``keep_old``: no old image is removed. The caller has the domain's lock in the repository. Raises UnsuitableError
    if the domain runs, the journal is not of this host and repository or of images of another host, an image is not
    the one that it names, or ``devs`` lacks a disk; ChainError if it cannot be read, BusyError, StorageError,
    RemoteError, LinkLostError.
    """
    directory = repository.path / handle.uuid
    entry = in_place_journal.read(directory)
    if entry is None:
        return Settled()
    rollback.refuse_running(handle)
    journal = directory / in_place_journal.NAME
    if not entry.is_of(directory):
        if entry.is_begun:
            raise UnsuitableError(
                f"A restore in place to backup {entry.backup} was interrupted on host {entry.writer.host}, or before"
                " this repository was copied or moved; some disks may be as in that backup and others as before. Run it"
                f" again there. If you know what the images of the domain are like, remove {journal} and run it here."
            )
        in_place_journal.remove(directory)
        return Settled()
    if (entry.host, entry.uri) != (place.host, place.uri):  # two hosts can have one name, such as localhost
        _leave(entry, place, directory, reporter)
        return Settled()
    paths = {disk.dev: place.path_of(disk) for disk in domain_xml.parse(handle.live_xml()).disks}
    unknown = [one for one in entry.disks if one.path not in paths.values()]
    if unknown:
        raise UnsuitableError(
            f"A restore in place to backup {entry.backup} was interrupted, but {unknown[0].path}, which it replaced, is"
            f" no image of domain {handle.name} any more. Look at the images, and remove {journal}."
        )
    if entry.step is Step.EXCHANGING:
        with place.held([path for path in _images(entry, place) if _seen(path, place) is not None]):
            refuse_started(handle)
            finish(directory, entry.disks, place, keep_old=keep_old, reporter=reporter)
            finished = {
                one.dev: one
                for one in entry.disks
                if one.path == paths.get(one.dev) and _seen(one.path, place) == one.new
            }
        place.whole(entry.devs)  # if the link to it is lost, the journal lets the next run do it
        in_place_journal.remove(directory)
        reporter.step(f"An interrupted restore in place to backup {entry.backup} was finished.")
        return Settled(finished=finished)
    return Settled(is_resumed=_run_again(entry, devs, place, directory, reporter))


def _leave(entry: Entry, place: Place, directory: Path, reporter: Reporter) -> None:
    """Leave what concerns images of another host than ``place``. Raises UnsuitableError if a domain is half restored.

    The domains on both have the same UUID, as a standby and its original. A host counts as another one under another
    URI, too: what it calls itself proves nothing.
    """
    journal, where = directory / in_place_journal.NAME, entry.host or "this host"
    if entry.is_begun:
        there = f", with{entry.option}" if entry.option else ""
        raise UnsuitableError(
            f"A restore in place of the domain on {where} to backup {entry.backup} was interrupted; some disks there"
            f" may be as in that backup and others as before. Run it again for that host{there}. If you know what the"
            f" images there are like, remove {journal}."
        )
    in_place_journal.remove(directory)
    new = [place.replacement(one.path, one.backup).new for one in entry.disks]
    if new:
        reporter.warning(
            f"A restore in place of the domain on {where} was interrupted before it changed a disk; if there is a file"
            f" {' or '.join(map(str, new))}, remove it."
        )


def _images(entry: Entry, place: Place) -> list[Path]:
    replacements = [place.replacement(one.path, one.backup) for one in entry.disks]
    return [path for one in replacements for path in (one.path, one.new)]


def _seen(path: Path, place: Place) -> Seen | None:
    with place.errors(f"look at {path}"):
        return place.seen(path)


def _run_again(entry: Entry, devs: Collection[str], place: Place, directory: Path, reporter: Reporter) -> bool:
    """Remove the new images, which are made again, and the journal. Return True if it stays: a disk may be changed."""
    lacking = sorted(entry.devs - set(devs))
    if entry.is_begun and lacking:
        raise UnsuitableError(
            f"A restore in place to backup {entry.backup} was interrupted: some of the disks {_listed(entry.devs)} may"
            f" be as in that backup and others as before. Restore all of them, {_listed(lacking)} too. Or, if they are"
            f" to stay as they are, remove {directory / in_place_journal.NAME}."
        )
    for one in entry.disks:
        names = place.replacement(one.path, one.backup)
        with place.errors(f"remove {names.new}"):
            found = place.seen(names.new)
            if found is None:
                continue
            if one.new is None or found == one.new:
                names.discard()
            else:
                reporter.warning(f"{names.new}{place.on_host} is not the image that a restore has made, so it stays.")
    if entry.is_begun:
        reporter.step(
            f"A restore in place to backup {entry.backup} was interrupted when some of the disks"
            f" {_listed(entry.devs)} may have been rolled back; this run restores all of them."
        )
        return True
    in_place_journal.remove(directory)
    reporter.step(f"An interrupted restore in place to backup {entry.backup} was undone: no disk was changed yet.")
    return False


def finish(
    directory: Path, disks: Sequence[Replaced], place: Place, *, reporter: Reporter, keep_old: bool = False
) -> None:
    """Put all new images in their places, and remove the old ones unless they are kept; the journal is the caller's.

    An old image that is not as it was recorded is kept, with a warning. Raises UnsuitableError if a new one is not, or
    is gone, StorageError, RemoteError, LinkLostError; the journal has to stay then.
    """
    pairs = [(one, place.replacement(one.path, one.backup)) for one in disks]
    on_host = place.on_host
    for one, names in pairs:
        found = _seen(names.new, place)
        if found is None:
            _refuse_lost(one, place, directory)
        elif found != one.new:
            raise UnsuitableError(
                f"{names.new}{on_host} is not as the restore in place has made it, so it does not take the place of"
                f" {one.path}. Move it away, remove {directory / in_place_journal.NAME}, and restore the disk {one.dev}"
                " again."
            )
    for one, names in pairs:
        with place.errors(f"put {names.new} in the place of {one.path}"):
            names.put()
    for one, _ in pairs:
        _refuse_lost(one, place, directory)
    for one, names in pairs:
        if one.is_kept or keep_old:
            continue
        with place.errors(f"remove {names.kept}"):
            kept, present = place.seen(names.kept), place.seen(one.path)
            if kept is None:
                continue
            if kept == one.old and one.new is not None and present is not None and present.inode == one.new.inode:
                names.remove_old()
                continue
        reporter.warning(
            f"Disk {one.dev}: {names.kept}{on_host} stays: it was written to after the restore was interrupted, or is"
            " not the image that was replaced. Remove it if you do not need it."
        )


def _refuse_lost(one: Replaced, place: Place, directory: Path) -> None:
    """Raise UnsuitableError if the image of a disk is not the new one, whose other name is gone."""
    present = _seen(one.path, place)
    if one.new is None or present is None or present.inode != one.new.inode:
        raise UnsuitableError(
            f"The new image of disk {one.dev} is gone: {one.path}{place.on_host} is not the one that the restore in"
            f" place has made, nor is {place.replacement(one.path, one.backup).new}. Look at the images, remove"
            f" {directory / in_place_journal.NAME}, and restore the disk again."
        )


def refuse_started(handle: DomainHandle) -> None:
    """Raise BusyError if the domain runs."""
    if handle.is_active():
        raise BusyError(f"Domain {handle.name} has been started; run the same command again when it is off.")


def _listed(devs: Collection[str]) -> str:
    return ", ".join(sorted(devs))
