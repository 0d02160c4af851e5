"""What proves that the files of a disk's backing chain are the same as at an earlier backup, and unchanged.

A bitmap records the changes of the layer that has it, and of no other: not of the layers below, and not of an external
data file, which can be exchanged without a trace in the qcow2 image. So a backup records the state of all files.
vbackup.domain.chain_states gathers the facts, vbackup.domain.file_contents the digests, and vbackup.engine.underlay
compares them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
    mtime_ns: int | None = None  #: the kernel sets it at every write, and everybody can set it back
    #: The kernel sets it at every change of the file or its inode, and nobody can set it; but libvirt's chown at
    #: the start of a domain changes it too. None: not recorded, so that size and mtime have to do.
    ctime_ns: int | None = None
    #: Of what the guest can read from it (vbackup.domain.file_contents), which it had when it had that ctime.
    digest: str | None = None
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

    def has_size_and_time_of(self, other: FileState, *, same_boot: bool) -> bool:
        """Return True if both are one regular file with one size and time of modification."""
        facts = (self.size_bytes, self.mtime_ns)
        return self.is_same_file(other, same_boot=same_boot) and facts == (other.size_bytes, other.mtime_ns)

    def is_untouched(self, other: FileState, *, same_boot: bool) -> bool:
        """Return True if not even the file's inode has changed in between."""
        return (
            self.has_size_and_time_of(other, same_boot=same_boot)
            and self.ctime_ns in (other.ctime_ns, None)
            and (self.ctime_ns != TOO_NEW)
        )

    def is_unchanged(self, other: FileState, *, same_boot: bool) -> bool:
        """Return True if it is proven that ``other``, a later state, is of one regular file with the same content.

        A state without ctime is of a version that recorded none, or of a file that could not be read. It is trusted by
        size and time, also if bitmaps of vbackup have changed these.
        """
        if self.is_untouched(other, same_boot=same_boot):
            return True
        if not self.is_same_file(other, same_boot=same_boot):
            return False
        if self.ctime_ns is None:
            return (self.size_bytes, self.mtime_ns) in other.earlier
        return self.digest is not None and self.digest == other.digest

    def is_undecided(self, other: FileState, *, same_boot: bool) -> bool:
        """Return True if the digest of ``other``, which is not known yet, decides whether it is unchanged."""
        return (
            self.ctime_ns is not None
            and self.digest is not None
            and other.digest is None
            and self.is_same_file(other, same_boot=same_boot)
            and not self.is_untouched(other, same_boot=same_boot)
        )

    def document(self) -> dict[str, Any]:
        """Return it as a JSON object, without what is not known."""
        members = {
            "path": self.path,
            "device": self.device,
            "inode": self.inode,
            "size_bytes": self.size_bytes,
            "mtime_ns": self.mtime_ns,
            "ctime_ns": self.ctime_ns,
            "digest": self.digest,
        }
        return {name: value for name, value in members.items() if value is not None}

    @classmethod
    def read(cls, fields: Fields) -> FileState:
        """Return the state that ``document`` describes; a wrong member raises ``fields``' error."""
        path = fields.text("path")
        known = {name: fields.integer(name) for name in _FACTS if name in fields}
        if len(known) < len(_FACTS):
            return cls(path)
        return cls(
            path,
            known["device"],
            known["inode"],
            known["size_bytes"],
            known["mtime_ns"],
            ctime_ns=fields.integer("ctime_ns") if "ctime_ns" in fields else None,
            digest=fields.optional_text("digest"),
        )


#: A ctime so new that a further change could leave the same: no other state is untouched then.
TOO_NEW = 0

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

    def with_files(self, change: Callable[[FileState], FileState]) -> LayerState:
        """Return it with ``change`` made to its files."""
        return replace(
            self, file=change(self.file), data_file=None if self.data_file is None else change(self.data_file)
        )

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

    @property
    def files(self) -> tuple[FileState, ...]:
        """The files of all layers."""
        return tuple(file for layer in self.layers for file in layer.files)

    def with_files(self, change: Callable[[FileState], FileState], *, below: int) -> ChainState:
        """Return it with ``change`` made to the files of the layers below the first ``below``."""
        return replace(self, layers=(*self.layers[:below], *(one.with_files(change) for one in self.layers[below:])))

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
