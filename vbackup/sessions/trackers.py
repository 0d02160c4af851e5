"""A tracker: one client of pull sessions on one domain, and the checkpoints from which its sessions can start.

Each client has one, so that products do not disturb each other. Only ``commit`` gives it a checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vbackup import names
from vbackup.errors import StorageError, UnknownCheckpointError
from vbackup.fields import Fields
from vbackup.model import Level
from vbackup.sessions.checkpoint import Checkpoint

SCHEMA = "vbackup.tracker/1"
#: How many checkpoints are kept beside the last full of each disk: a client may lose what it has pulled after it has
#: committed, and then name the one before. Each costs the guest a bit for every 64 KiB that it writes.
KEPT = 3


@dataclass(frozen=True)
class Tracker:
    """The checkpoints of a tracker, the oldest first."""

    name: str
    domain_name: str
    domain_uuid: str
    checkpoints: Sequence[Checkpoint] = ()
    last_sequence: int = 0  #: of a checkpoint that it has, or has had

    @property
    def base(self) -> Checkpoint | None:
        """The newest checkpoint, from which the next session starts unless the client names another."""
        return self.checkpoints[-1] if self.checkpoints else None

    @property
    def ids(self) -> frozenset[str]:
        """The ids of its checkpoints."""
        return frozenset(one.id for one in self.checkpoints)

    @property
    def sizes(self) -> dict[str, frozenset[int]]:
        """The sizes in bytes that each disk had at its checkpoints, by dev."""
        devs = {dev for one in self.checkpoints for dev in one.disks}
        return {
            dev: frozenset(one.disks[dev].size_bytes for one in self.checkpoints if dev in one.disks) for dev in devs
        }

    def checkpoint(self, checkpoint_id: str) -> Checkpoint:
        """Return the checkpoint of that id. Raises UnknownCheckpointError."""
        for one in self.checkpoints:
            if one.id == checkpoint_id:
                return one
        raise UnknownCheckpointError(checkpoint_id, self.name, [one.id for one in self.checkpoints])

    def committed_by(self, session: str) -> Checkpoint | None:
        """Return the checkpoint that a session has made, None if it was not committed."""
        return next((one for one in self.checkpoints if one.session == session), None)

    def with_committed(self, checkpoint: Checkpoint) -> Tracker:
        """Return it with one more checkpoint, and without those that nobody needs any more (KEPT)."""
        grown = (*self.checkpoints, checkpoint)
        kept = {one.id for one in grown[-KEPT:]} | _last_fulls(grown)
        return replace(
            self,
            checkpoints=tuple(one for one in grown if one.id in kept),
            last_sequence=max(self.last_sequence, checkpoint.sequence),
        )

    def without(self, ids: Collection[str]) -> Tracker:
        """Return it without these checkpoints. Raises UnknownCheckpointError for one that it does not have."""
        for checkpoint_id in ids:
            self.checkpoint(checkpoint_id)
        return replace(self, checkpoints=tuple(one for one in self.checkpoints if one.id not in ids))

    def document(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "domain": {"name": self.domain_name, "uuid": self.domain_uuid},
            "last_sequence": self.last_sequence,
            "checkpoints": [one.document() for one in self.checkpoints],
        }


def _last_fulls(checkpoints: Sequence[Checkpoint]) -> set[str]:
    """Return the ids of the checkpoints that a differential of one of the disks starts from."""
    newest: dict[str, str] = {}
    for one in checkpoints:
        newest.update((disk.dev, one.id) for disk in one.disks.values() if disk.level is Level.FULL and disk.bitmap)
    return set(newest.values())


def read(fields: Fields) -> Tracker:
    """Return the tracker that ``document`` describes. Raises StorageError."""
    if fields.text("schema") != SCHEMA:
        raise StorageError(
            f"The tracker has format {fields.text('schema')[:50]!r}, but this vbackup knows only {SCHEMA}."
        )
    name, domain = fields.text("name"), fields.object("domain")
    uuid = domain.text("uuid")
    if not names.TRACKER.fullmatch(name) or not names.UUID.fullmatch(uuid):
        raise StorageError(f"{name[:70]!r} of domain {uuid[:50]!r} is not a tracker that vbackup writes down.")
    checkpoints = [Checkpoint.read(one) for one in fields.objects("checkpoints")]
    return Tracker(
        name=name,
        domain_name=domain.text("name"),
        domain_uuid=uuid,
        checkpoints=tuple(sorted(checkpoints, key=lambda one: one.sequence)),
        last_sequence=fields.integer("last_sequence"),
    )
