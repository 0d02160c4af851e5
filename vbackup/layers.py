"""What proves that the files of a disk's backing chain are the same as at an earlier backup, and unchanged.

A bitmap records the changes of the layer that has it, and of no other: not of the layers below, and not of an external
data file, which can be exchanged without a trace in the qcow2 image. So a backup records the state of all files.
vbackup.domain.chain_states gathers the facts, vbackup.engine.underlay compares them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vbackup.fields import Fields


@dataclass(frozen=True)
class FileState:
    """A file, block device or network image that QEMU has open, and what is known of it.

    Without an inode nothing proves later that it is the same and unchanged: it is no regular file of this host, or its
    name stands for another file than QEMU has open, or it was being written.
    """

    path: str  #: or URL, as QEMU has it
    device: int | None = None  #: st_dev; means nothing after a reboot
    inode: int | None = None
    size_bytes: int | None = None
    mtime_ns: int | None = None  #: the kernel sets it at every write; st_ctime changes with libvirt's chown too
    #: Sizes and times it had before, from which only bitmaps of vbackup separate it; not recorded.
    earlier: tuple[tuple[int, int], ...] = field(default=(), compare=False)

    @property
    def is_proven(self) -> bool:
        """True if a later look can prove that the file is the same and unchanged."""
        return self.inode is not None

    def unproven(self) -> FileState:
        """Return the state of which only the name is known."""
        return FileState(self.path)

    def is_same_file(self, other: FileState, *, same_boot: bool) -> bool:
        """Return True if both are one regular file. Device numbers count only if both are ``same_boot``."""
        if self.inode is None or other.inode is None:
            return False
        return self.inode == other.inode and (not same_boot or self.device == other.device)

    def is_unchanged(self, other: FileState, *, same_boot: bool) -> bool:
        """Return True if both are one regular file to which nothing but bitmaps of vbackup was written in between."""
        facts, others = (self.size_bytes, self.mtime_ns), (other.size_bytes, other.mtime_ns)
        return self.is_same_file(other, same_boot=same_boot) and (facts == others or facts in other.earlier)

    def document(self) -> dict[str, Any]:
        """Return it as a JSON object, without what is not known."""
        members = {
            "path": self.path,
            "device": self.device,
            "inode": self.inode,
            "size_bytes": self.size_bytes,
            "mtime_ns": self.mtime_ns,
        }
        return {name: value for name, value in members.items() if value is not None}

    @classmethod
    def read(cls, fields: Fields) -> FileState:
        """Return the state that ``document`` describes; a wrong member raises ``fields``' error."""
        path = fields.text("path")
        known = {name: fields.integer(name) for name in _FACTS if name in fields}
        if len(known) < len(_FACTS):
            return cls(path)
        return cls(path, known["device"], known["inode"], known["size_bytes"], known["mtime_ns"])


_FACTS = ("device", "inode", "size_bytes", "mtime_ns")


@dataclass(frozen=True)
class LayerState:
    """One layer of a backing chain."""

    node_name: str
    file: FileState
    data_file: FileState | None = None  #: qcow2: the external data file, which has the content

    @property
    def files(self) -> tuple[FileState, ...]:
        """Its file, and its data file if it has one."""
        return (self.file,) if self.data_file is None else (self.file, self.data_file)

    def document(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        members: dict[str, Any] = {"node_name": self.node_name, "file": self.file.document()}
        if self.data_file is not None:
            members["data_file"] = self.data_file.document()
        return members

    @classmethod
    def read(cls, fields: Fields) -> LayerState:
        """Return the state that ``document`` describes; a wrong member raises ``fields``' error."""
        data_file = FileState.read(fields.object("data_file")) if "data_file" in fields else None
        return cls(fields.text("node_name"), FileState.read(fields.object("file")), data_file)


@dataclass(frozen=True)
class ChainState:
    """All layers of a disk, the active one first."""

    layers: tuple[LayerState, ...]
    device_mark: str | None = None  #: of the device that has it open (vbackup.qemu.device_mark), if it has one
    boot_id: str | None = None  #: of the host whose files these are; None: of another host

    def document(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "device_mark": self.device_mark,
            "boot_id": self.boot_id,
            "layers": [layer.document() for layer in self.layers],
        }

    @classmethod
    def read(cls, fields: Fields) -> ChainState:
        """Return the state that ``document`` describes; a wrong member raises ``fields``' error."""
        return cls(
            tuple(LayerState.read(layer) for layer in fields.objects("layers")),
            device_mark=fields.optional_text("device_mark"),
            boot_id=fields.optional_text("boot_id"),
        )
