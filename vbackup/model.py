"""The words of vbackup as types: disks, bitmaps, levels, backups. Standard library only.

All are frozen: facts are found once and handed on, answers are returned, nothing is written back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, ClassVar

#: 64 KiB: QEMU's own default for images with clusters of 64 KiB or more, and the smallest piece a backup job copies.
GRANULARITY_BYTES = 65536
#: qcow2's own default, and what one bit of a checkpoint's bitmap stands for: QEMU copies whole clusters of the target,
#: so with larger ones an incremental would copy more than what changed. It compresses four of them at a time.
CLUSTER_BYTES = 64 * 1024


class Level(Enum):
    """How much a backup copies."""

    AUTO = "auto"  #: asked for only: vbackup decides for each disk
    FULL = "full"  #: the whole disk; begins a chain
    INCREMENTAL = "incremental"  #: what changed since the newest backup
    DIFFERENTIAL = "differential"  #: what changed since the last full
    COPY = "copy"  #: the whole disk, beside the chain and without touching a bitmap


class Quiesce(Enum):
    """Whether the guest's filesystems are frozen at the moment of the backup."""

    AUTO = "auto"  #: when a guest agent answers
    REQUIRED = "required"  #: fail without
    NO = "no"


class Consistency(Enum):
    """What the guest would find when it boots from a backup."""

    FILESYSTEM = "filesystem"  #: filesystems were frozen: clean
    CRASH = "crash"  #: as after a power cut: journals are replayed
    OFFLINE = "offline"  #: the domain was shut off


class Compression(Enum):
    """How the clusters of a target image are compressed (qcow2's compression_type)."""

    NONE = "none"
    AUTO = "auto"  #: asked for only: the best that QEMU has
    ZSTD = "zstd"
    ZLIB = "zlib"


class ImageFormat(Enum):
    """Formats that a disk is restored to."""

    QCOW2 = "qcow2"
    RAW = "raw"


# the domain


@dataclass(frozen=True)
class SourceType:
    """Where an image is stored, by libvirt's name: type of a <disk> or <backingStore> (file, block, network, ...).

    Not an Enum: a newer libvirt may have more types, and messages show the name that was read.
    """

    name: str

    FILE: ClassVar[SourceType]

    def __str__(self) -> str:
        return self.name


SourceType.FILE = SourceType("file")


@dataclass(frozen=True)
class BlockDriver:
    """A block driver by QEMU's name (QAPI BlockdevDriver): an image format, a protocol or a filter.

    Image formats have the same names in libvirt. Not an Enum: QEMU has many more drivers than the few that vbackup
    treats specially, and messages show the name that was read.
    """

    name: str

    QCOW2: ClassVar[BlockDriver]
    RAW: ClassVar[BlockDriver]

    def __str__(self) -> str:
        return self.name


BlockDriver.QCOW2 = BlockDriver("qcow2")
BlockDriver.RAW = BlockDriver("raw")


@dataclass(frozen=True)
class SecretRef:
    """A secret of libvirt's as an XML names it: by its UUID or by its usage."""

    uuid: str | None = None
    usage: str | None = None

    def __str__(self) -> str:
        return self.uuid or f"with the usage {self.usage}"


@dataclass(frozen=True)
class ImageLocation:
    """One image of a disk as the XML describes it: where it is, and how it is opened."""

    source_type: SourceType
    format: BlockDriver | None  #: None where the XML does not say it of a backing image
    path: str | None = None
    pool: str | None = None
    volume: str | None = None
    secret: SecretRef | None = None  #: of its LUKS encryption
    oddity: str | None = None  #: what nobody but the domain's own QEMU can make of it


@dataclass(frozen=True)
class Disk:
    """A disk of the domain XML that is to be backed up."""

    dev: str
    alias: str  #: of the device; ``dev`` where the domain is off and the user gave none
    path: str | None  #: of the image or block device where the XML names one
    format: BlockDriver
    encrypted: bool = False
    images: tuple[ImageLocation, ...] = ()  #: its backing chain as far as the XML has it, the active image first
    chain_ends: bool = False  #: the XML says that the last of them has no backing file


@dataclass(frozen=True)
class LeftOut:
    """A disk that no backup of this domain contains."""

    dev: str
    reason: str


@dataclass(frozen=True)
class SecurityLabel:
    """What confines the domain's QEMU process, by libvirt's security driver."""

    model: str  #: dac, apparmor, selinux
    label: str  #: "+64055:+109", a profile, a context


@dataclass(frozen=True)
class Domain:
    """What the domain XML says, as far as a backup is concerned."""

    name: str
    uuid: str
    disks: tuple[Disk, ...]
    left_out: tuple[LeftOut, ...]
    agent_connected: bool
    nvram_path: str | None = None
    security_labels: tuple[SecurityLabel, ...] = ()  #: libvirt tells them while the domain runs


# QEMU's block graph


@dataclass(frozen=True)
class Bitmap:
    """A dirty bitmap of a node, as query-named-block-nodes shows it (QAPI BlockDirtyInfo)."""

    name: str
    recording: bool
    busy: bool
    persistent: bool
    inconsistent: bool
    granularity_bytes: int
    dirty_bytes: int

    @property
    def state(self) -> str:
        """In one word: inconsistent, busy, recording or disabled."""
        if self.inconsistent:
            return "inconsistent"
        if self.busy:
            return "busy"
        return "recording" if self.recording else "disabled"


@dataclass(frozen=True)
class Layer:
    """One image of a disk's backing chain: a format node, its bitmaps by name."""

    node_name: str
    driver: BlockDriver
    read_only: bool
    virtual_size_bytes: int
    filename: str
    stores_bitmaps: bool = False  #: qcow2 of version 3 does; version 2 (compat=0.10) and raw do not
    bitmaps: Mapping[str, Bitmap] = field(default_factory=dict)


@dataclass(frozen=True)
class DiskNode:
    """A disk and its layers in QEMU, the active one first. Filter nodes on top are left aside."""

    disk: Disk
    layers: tuple[Layer, ...]
    lasting: bool = True  #: False in a storage daemon: what it does not store in an image ends with the backup

    @property
    def top(self) -> Layer:
        """The layer the guest writes to: it is backed up, and bears the bitmaps."""
        return self.layers[0]

    @property
    def keeps_bitmaps(self) -> bool:
        """True if bitmaps are stored in the image and so outlive the QEMU process."""
        return self.top.stores_bitmaps

    @property
    def bears_checkpoints(self) -> bool:
        """True if a bitmap made now can be there at the next backup."""
        return self.lasting or self.keeps_bitmaps


@dataclass(frozen=True)
class NodeBitmap:
    """A bitmap on a node, as block-dirty-bitmap-merge takes it (QAPI BlockDirtyBitmap)."""

    node_name: str
    bitmap: str


# target images


@dataclass(frozen=True)
class ImageOptions:
    """How an image is made: options of qemu-img create for qcow2."""

    cluster_bytes: int = CLUSTER_BYTES
    compression: Compression = Compression.NONE


@dataclass(frozen=True)
class NodeOptions:
    """How QEMU has an image open: members of QAPI's BlockdevOptions.

    The defaults are QEMU's own.
    """

    no_flush: bool = False  #: QEMU leaves it to others that data gets from the page cache to the disk
    detect_zeroes: bool = False  #: zeros that the guest has written take no room

    def members(self) -> dict[str, Any]:
        """As blockdev-add and blockdev-reopen take them, without what is the default."""
        given: dict[str, Any] = {}
        if self.no_flush:
            given["cache"] = {"no-flush": True}
        if self.detect_zeroes:
            given["detect-zeroes"] = "on"
        return given


QEMUS_OWN = NodeOptions()


# backups in the repository


@dataclass(frozen=True)
class DiskImage:
    """One disk of one backup: the image file, and what it stands on."""

    dev: str
    level: Level
    base: str | None  #: id of the backup whose checkpoint it starts from and whose image backs it
    reason: str  #: why this level
    file: str  #: name within the backup's directory
    virtual_size_bytes: int
    file_size_bytes: int
    copied_bytes: int
    digest: str  #: "sha256:..." of the image file
    bitmap: str | None  #: the checkpoint's bitmap on the disk, None for a copy
    node_name: str
    source: str | None  #: path of the disk on the host
    source_format: BlockDriver
    encrypted: bool = False  #: the disk was encrypted on the host; the image is not


@dataclass(frozen=True)
class GroupMember:
    """One backup of a group."""

    domain_name: str
    domain_uuid: str
    backup_id: str


@dataclass(frozen=True)
class Group:
    """Backups of several domains that were made at one point in time."""

    id: str
    members: tuple[GroupMember, ...]
    spread_ms: float = 0.0  #: from the first transaction's sending to the last one's return; 0 before them


@dataclass(frozen=True)
class Backup:
    """A committed backup. Its id is also the name of its checkpoint."""

    id: str
    sequence: int  #: order of the commits of one domain; clocks may step back
    level: Level
    parent: str | None  #: newest backup that one of its disks stands on
    time: datetime
    domain_name: str
    domain_uuid: str
    disks: tuple[DiskImage, ...]
    left_out: tuple[LeftOut, ...]
    consistency: Consistency
    frozen_ms: int
    duration_s: float
    files: Mapping[str, str]  #: further files by name with their digest: domain.xml, nvram
    versions: Mapping[str, str]  #: of vbackup, qemu and libvirt
    group: Group | None = None  #: None where it was made for itself

    @property
    def size_bytes(self) -> int:
        """Of its image files together."""
        return sum(image.file_size_bytes for image in self.disks)

    def image(self, dev: str) -> DiskImage | None:
        """The image of disk ``dev``, None if this backup has none."""
        return next((image for image in self.disks if image.dev == dev), None)
