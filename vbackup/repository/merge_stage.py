"""Put new images of a committed backup in the place of the old ones: images, lists and manifest at one instant.

The new files are staged in a directory beside the backup's, with hard links to those that stay, and the two directories
exchange their names in one step. So whoever opens a path finds the old or the new backup, and relative paths of other
images to it are valid at every instant; who has files open keeps the old ones.

Where a filesystem cannot exchange, or has no hard links, each file takes the place of the old one, the manifest last.
A marker in the stage (PUBLISH), written when everything is on the disk, makes a later run go on with it. Each image is
right at every instant all the same: the new one holds more of the disk than the old one.

Without a marker, a stage is what a dead run was preparing, or what it has exchanged away: it is removed.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from vbackup import names
from vbackup.errors import BusyError
from vbackup.files import fsync, is_directory, storage_errors
from vbackup.report import Reporter
from vbackup.repository import filesystem, merge_journal, readers
from vbackup.repository.merge_journal import MERGE, PUBLISH, REMOVED
from vbackup.stop import Stop

_MANIFEST = "manifest.json"
#: What a verify has found in the old images (vbackup.repository.verification): it says nothing about the new ones.
_VERIFIED = "verified.json"
#: How long the publications of one run wait, in all, for readers of the old files.
PATIENCE_S = 30.0


class Patience:
    """How long a run still waits for readers; ``reporter`` is told for whom when a wait begins."""

    def __init__(self, reporter: Reporter, left_s: float | None = None) -> None:
        self.left_s = PATIENCE_S if left_s is None else left_s
        self._reporter = reporter
        self._began: float | None = None

    def wait(self, directory: Path) -> bool:
        """Wait a moment for the readers of a backup; return False, at once, if there is no time left."""
        if self.left_s <= 0:
            return False
        now = time.monotonic()
        if self._began is None:
            self._began = now
            who = readers.users(directory)
            self._reporter.step(f"Waiting up to {self.left_s:.0f} s for {who}, which reads backup {directory.name}.")
        time.sleep(readers.TICK_S)
        self.left_s -= time.monotonic() - now
        return True

    def end(self) -> None:
        """End a wait: the next one is told of again."""
        self._began = None


class MergeStage:
    """The stage of new images of a backup. Its directory is removed at the end of the block. A context manager."""

    def __init__(self, directory: Path, backup_id: str) -> None:
        self._domain = directory
        self._final = directory / backup_id
        self.path = directory / f"{MERGE}{backup_id}"

    def __enter__(self) -> MergeStage:
        with storage_errors(f"write to {self._domain}"):
            _remove_tree(self.path)
            self.path.mkdir(mode=0o700)
        return self

    def __exit__(self, *_exc: object) -> None:
        if not os.path.lexists(self.path / PUBLISH):
            _remove_tree(self.path)

    def publish(self, manifest_text: str, *, exchanges: bool, stop: Stop, patience: Patience | None) -> None:
        """Put the staged files, with this manifest, in the place of the backup's.

        Raises BusyError if the backup is being read for longer than ``patience`` has (None: the caller has claimed it),
        StorageError, NoSpaceError, InterruptedBySignalError; the old files stay then.
        """
        with storage_errors(f"write to {self.path}"):
            _write(self.path / _MANIFEST, manifest_text.encode())
            can_exchange = exchanges and self._link_others()
            for entry in sorted(self.path.iterdir()):
                if is_directory(entry) or (not entry.is_symlink() and entry.stat().st_nlink == 1):
                    fsync(entry)
            fsync(self.path)
        with ExitStack() as stack:
            if patience is not None:
                stack.enter_context(claim([self._final], stop=stop, patience=patience))
            stop.check()
            with storage_errors(f"write to {self._domain}"):
                if can_exchange:
                    filesystem.exchange(self.path, self._final)
                    fsync(self._domain)
                else:
                    _write(self.path / PUBLISH, b"")
                    fsync(self.path)
                    fsync(self._domain)  # a stage without a name could not be found again
                    _move(self.path, self._final)

    def _link_others(self) -> bool:
        """Link the files of the backup that stay; return False if the filesystem has no links (the stage is clean)."""
        import shutil

        made: list[Path] = []
        status = self._final.stat()
        try:
            for entry in sorted(self._final.iterdir()):
                target = self.path / entry.name
                if os.path.lexists(target) or entry.name == _VERIFIED:
                    continue
                made.append(target)
                if is_directory(entry):
                    shutil.copytree(entry, target, symlinks=True, copy_function=_link)
                else:
                    _link(entry, target)
        except (OSError, shutil.Error):
            for target in made:
                _remove_tree(target)
            return False
        self.path.chmod(stat.S_IMODE(status.st_mode))
        with suppress(PermissionError):
            os.chown(self.path, status.st_uid, status.st_gid)
        return True


def _link(source: str | Path, target: str | Path, *, follow_symlinks: bool = False) -> None:
    os.link(source, target, follow_symlinks=follow_symlinks)


@contextmanager
def claim(directories: Collection[Path], *, stop: Stop, patience: Patience | None = None) -> Iterator[None]:
    """Have these backups for the block: nobody reads one. Raises BusyError, InterruptedBySignalError."""
    while True:
        with ExitStack() as stack, storage_errors("lock a backup"):
            used = [one for one in sorted(directories) if not stack.enter_context(readers.claimed(one))]
            held = stack.pop_all()
        with held:
            if not used:
                if patience is not None:
                    patience.end()
                yield
                return
        stop.check()
        if patience is None or not patience.wait(used[0]):
            if patience is not None:
                patience.end()
            raise BusyError(
                f"Backup {used[0].name} is in use: {readers.users(used[0])} reads it. Run the same command again when"
                " that has ended."
            )


def remove(directory: Path, backup_id: str, *, stop: Stop) -> None:
    """Remove a backup on which no other depends: it goes at one instant, its files after that.

    Raises BusyError if it is being read, StorageError.
    """
    with claim([directory / backup_id], stop=stop), storage_errors(f"remove {directory / backup_id}"):
        gone = directory / f"{REMOVED}{backup_id}"
        _remove_tree(gone)
        (directory / backup_id).rename(gone)
        fsync(directory)
    _remove_tree(gone)


def clear(directory: Path) -> list[str]:
    """Finish the publications that a dead run began, and remove the rest of what it left; return what was done.

    The domain's lock is held. Raises StorageError.
    """
    done = []
    for entry in merge_journal.leftovers(directory):
        if entry.name == merge_journal.NAME:
            continue
        backup_id = entry.name.removeprefix(MERGE)
        final = directory / backup_id
        with storage_errors(f"write to {directory}"):
            if entry.name.startswith(MERGE) and (entry / PUBLISH).is_file() and names.BACKUP_ID.fullmatch(backup_id):
                if is_directory(final):
                    _move(entry, final)
                    done.append(f"Finished the exchange of images of backup {backup_id}, which was interrupted.")
            elif entry.name.startswith(MERGE):
                done.append(f"Removed what an interrupted merge had prepared for backup {backup_id}.")
            elif entry.name.startswith(REMOVED):
                done.append(f"Removed the rest of backup {entry.name.removeprefix(REMOVED)}.")
            _remove_tree(entry)
    return done


def _move(stage: Path, final: Path) -> None:
    """Put every file of a stage in the place of the backup's, the manifest last, and remove the stage.

    Only files that are staged are touched: going on with it is the same as beginning.
    """
    (final / _VERIFIED).unlink(missing_ok=True)
    order = sorted(stage.iterdir(), key=lambda path: (path.name == _MANIFEST, path.name))
    for path in order:
        if path.name != PUBLISH:
            path.replace(final / path.name)
    fsync(final)
    (stage / PUBLISH).unlink()
    fsync(stage)


def _write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _remove_tree(path: Path) -> None:
    """Remove a file or a directory. What cannot be removed stays, and the next run tries again."""
    if path.is_symlink() or not path.is_dir():
        with suppress(OSError):
            path.unlink()
    else:
        import shutil  # imports all compression modules; most commands that look for leftovers find none

        shutil.rmtree(path, ignore_errors=True)
