"""Have the points of a domain at a target for oneself: who copies or removes points says so there with an object.

Each puts an object of a random name, and then lists: whoever sees another's gives way. The later of two puts comes
before the later of two lists, so both may give way, but never does each miss the other. No clock is compared.

A vbackup that is killed leaves its claim. On the same machine the next one knows it, by a note beside the ledger, which
does not count in a copy of its directory; elsewhere, somebody has to say that it is dead (``take_over``).
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vbackup.copies.target import CLAIM, RELEASED, Listing, Target, listing
from vbackup.errors import BusyError, StorageError
from vbackup.files import read_regular, replace_text, storage_errors
from vbackup.machine import this_host
from vbackup.stores.store import Deletion, StoredObject

_NOTE = "claim"
_TOKEN = re.compile(r"[0-9a-f]{12}")


@contextmanager
def claimed(target: Target, uuid: str, directory: Path, *, take_over: bool = False) -> Iterator[Listing]:
    """Yield what the target has of a domain, which nobody else changes during the block.

    ``directory``: this machine's, of the domain (Ledger.directory_of); who calls this has locked it. ``take_over``:
    the claims of others are of processes that are gone. Raises BusyError if another has a claim, StorageError.
    """
    note = directory / _NOTE
    token = _read(note, directory)
    # Where nothing can be deleted, a run that was killed at its end has left the note of a claim that does not count.
    if token is None or target.store.size(f"{uuid}/{RELEASED}{token}") is not None:
        token = secrets.token_hex(6)
    key = f"{uuid}/{CLAIM}{token}"
    with storage_errors(f"write {note}"):
        replace_text(
            note, f"{token} {_place(directory)}\n"
        )  # before the object, or a killed run would not know its own
    try:
        target.put_small(key, json.dumps({"host": this_host().name, "pid": os.getpid()}).encode())
        found = listing(target, uuid)
        others = [each for each in found.claims if each.key != key]
        if others and not take_over:
            raise _busy(target, others[0])
        for each in others:
            _release(target, each.key)
        yield found
    finally:
        with suppress(StorageError, OSError):
            _release(target, key)
            note.unlink()


def _release(target: Target, key: str) -> None:
    """End a claim; where nothing can be deleted, by an object that says so. Raises StorageError."""
    if target.store.delete(key) is Deletion.KEPT:
        target.put_small(key.replace(f"/{CLAIM}", f"/{RELEASED}"), b"")


def _busy(target: Target, other: StoredObject) -> BusyError:
    return BusyError(
        f"Another vbackup has been copying or removing points of this domain at {target.name} since"
        f" {other.modified:%Y-%m-%d %H:%M:%S %Z} ({other.key}). Run the same command again when that has ended; if it"
        " was killed, on another machine than this one, add --take-over."
    )


def _read(note: Path, directory: Path) -> str | None:
    """Return the token of a claim that a killed run has left here; None if there is none, or it is not to be read."""
    try:
        token, _, place = read_regular(note, max_bytes=1000).decode().strip().partition(" ")
    except (OSError, ValueError):
        return None
    return token if _TOKEN.fullmatch(token) and place == _place(directory) else None


def _place(directory: Path) -> str:
    """Return what tells a directory from a copy of it, on this machine or another."""
    host = this_host()
    return f"{host.machine_id or host.name} {directory.stat().st_ino}"
