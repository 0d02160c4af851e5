"""The terms of vbackup as types: disks, bitmaps, levels, backups.

All are frozen: facts are read once and passed on, answers are returned, nothing is changed in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, ClassVar

from vbackup.layers import ChainState, FileState, LayerState

#: 64 KiB: QEMU's default for images with clusters of 64 KiB or more, and the smallest unit that a backup job copies.
GRANULARITY_BYTES = 65536
#: The default of qcow2, and what one bit of a checkpoint's bitmap covers. QEMU copies whole clusters of the target, so
#: with larger ones an incremental would copy more than what changed. It compresses four clusters at a time.
CLUSTER_BYTES = 64 * 1024


class Level(Enum):
    """How much a backup copies."""

    AUTO = "auto"  #: only in a request: vbackup decides for each disk
    FULL = "full"  #: the whole disk; starts a chain
    INCREMENTAL = "incremental"  #: what changed since the newest backup
    DIFFERENTIAL = "differential"  #: what changed since the last full
    COPY = "copy"  #: the whole disk; is not part of a chain and changes no bitmap


class Quiesce(Enum):
    """Whether the guest's filesystems are frozen at the moment of the backup."""

    AUTO = "auto"  #: if a guest agent answers
    REQUIRED = "required"  #: the backup fails if they cannot be frozen
    NO = "no"


#: How long a guest's filesystems may be frozen, in seconds.
MIN_FREEZE_LIMIT_S, MAX_FREEZE_LIMIT_S = 1, 600


class FreezeMark(Enum):
    """How a later run can tell whether a backup that was killed had frozen the guest (vbackup.domain.freeze_turn)."""

    NONE = "none"  #: it froze nothing
    MARKED = "marked"  #: only if the host's mark of the freeze says so
    UNMARKED = "unmarked"  #: it cannot: nothing is marked; what is frozen is taken for its own


class Consistency(Enum):
    """The state that a guest finds when it boots from a backup."""

    FILESYSTEM = "filesystem"  #: clean: the filesystems were frozen
    CRASH = "crash"  #: as after a power failure: journals are replayed
    OFFLINE = "offline"  #: the domain was shut off


class Compression(Enum):
    """Compression type of a target image (compression_type of qcow2)."""

    NONE = "none"
    AUTO = "auto"  #: only in a request: the best that QEMU has
    ZSTD = "zstd"
    ZLIB = "zlib"


class Transport(Enum):
    """How the data of a backup comes here from a QEMU on another host."""

    AUTO = "auto"  #: only in a request: PATH if both hosts have the repository at the same path, else SSH
    SSH = "ssh"  #: over the connection to the hypervisor
    TLS = "tls"  #: QEMU connects to a port of this host
    PATH = "path"  #: QEMU writes to storage that both hosts have


class ImageFormat(Enum):
    """Format of an image that the user names: of a restored disk, or of an image file to work on."""

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
    """A libvirt secret as the XML names it: by its UUID or by its usage."""

    uuid: str | None = None
    usage: str | None = None

    def __str__(self) -> str:
        return self.uuid or f"with the usage {self.usage}"


@dataclass(frozen=True)
class ImageLocation:
    """An image of a disk as the XML describes it: where it is, and how it is opened."""

    source_type: SourceType
    format: BlockDriver | None  #: None if the XML does not give the format of a backing image
    path: str | None = None
    pool: str | None = None
    volume: str | None = None
    secret: SecretRef | None = None  #: for its LUKS encryption
    oddity: str | None = None  #: the reason why only the domain's own QEMU can open it


@dataclass(frozen=True)
class Disk:
    """A disk of the domain XML that can be backed up."""

    dev: str
    alias: str  #: of the device; ``dev`` if the XML has none, as while the domain is off unless the user set one
    path: str | None  #: of the image or block device, if the XML names one
    format: BlockDriver
    encrypted: bool = False
    images: tuple[ImageLocation, ...] = ()  #: its backing chain as far as the XML lists it, the active image first
    chain_ends: bool = False  #: True if the XML says that the last of them has no backing file


#: File of a backup with the XML of the domain as it ran, which can differ from its definition (domain.xml).
LIVE_XML = "live.xml"
#: File of a backup with the variables of UEFI firmware.
NVRAM = "nvram"
#: The reason for leaving out a disk that could be backed up: a backup without it is not complete.
EXCLUDED = "excluded by the user"

#: Media in CD-ROM and floppy drives that are backed up on request: seeds of cloud-init, not installation media.
MAX_MEDIUM_BYTES = 64 * 1024 * 1024
#: NVRAM stores of UEFI firmware are well under 1 MiB.
MAX_NVRAM_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class LeftOut:
    """A disk that is not backed up, or something else that the domain has on its host, and why."""

    dev: str  #: target of a disk, else a name for people
    reason: str
    kind: str = "disk"  #: the element of the domain XML: disk, nvram, tpm, filesystem, ...

    @property
    def is_excluded(self) -> bool:
        """True for a disk that can be backed up and that the user excluded."""
        return self.kind == "disk" and self.reason == EXCLUDED


@dataclass(frozen=True)
class HostIdentity:
    """The host that a domain was on when it was backed up."""

    name: str
    machine_id: str | None  #: of /etc/machine-id; None if libvirt was on another host than vbackup

    def __str__(self) -> str:
        return self.name

    def is_other_than(self, host: HostIdentity) -> bool:
        """Return True if they are two hosts.

        Without both machine ids the names tell, up to the first dot: libvirt gives the name of the host that it runs on
        with its domain (virConnectGetHostname).
        """
        if self.machine_id is not None and host.machine_id is not None:
            return self != host
        mine, theirs = (name.partition(".")[0].lower() for name in (self.name, host.name))
        return mine != theirs


@dataclass(frozen=True)
class SecurityLabel:
    """The label of a libvirt security driver that confines the domain's QEMU process."""

    model: str  #: dac, apparmor, selinux
    label: str  #: "+64055:+109", a profile, a context


@dataclass(frozen=True)
class Domain:
    """The parts of the domain XML that concern a backup."""

    name: str
    uuid: str
    disks: tuple[Disk, ...]
    left_out: tuple[LeftOut, ...]  #: disks that cannot be backed up
    agent_connected: bool
    nvram_path: str | None = None  #: of a file or a block device
    nvram_volume: tuple[str, str] | None = None  #: pool and volume, if it is one
    nvram_url: str | None = None  #: QEMU's name of it, if it is on the network
    nvram_trouble: str | None = None  #: why the NVRAM that it has is in no place that vbackup reads
    nvram_format: ImageFormat = ImageFormat.RAW
    security_labels: tuple[SecurityLabel, ...] = ()  #: in the XML only while the domain runs
    host_state: tuple[LeftOut, ...] = ()  #: what else it has on the host, which no backup contains
    xml: str = field(default="", compare=False, repr=False)  #: the text that all this was read from


# QEMU's block graph


@dataclass(frozen=True)
class Bitmap:
    """A dirty bitmap of a node, from query-named-block-nodes (QAPI BlockDirtyInfo)."""

    name: str
    recording: bool
    busy: bool
    persistent: bool
    inconsistent: bool
    granularity_bytes: int
    dirty_bytes: int

    @property
    def state(self) -> str:
        """State in one word: inconsistent, busy, recording or disabled."""
        if self.inconsistent:
            return "inconsistent"
        if self.busy:
            return "busy"
        return "recording" if self.recording else "disabled"


@dataclass(frozen=True)
class Layer:
    """An image of a disk's backing chain: a format node with its bitmaps by name."""

    node_name: str
    driver: BlockDriver
    read_only: bool
    virtual_size_bytes: int
    filename: str
    allocated_bytes: int | None = None  #: storage that its file takes (actual-size); None if QEMU does not say
    lists_bitmaps: bool = True  #: False if QEMU could not be asked for them (vbackup.qemu.partial_graph)
    stores_bitmaps: bool = False  #: as qcow2 version 3 can; version 2 (compat=0.10) and raw cannot
    data_file: str | None = None  #: qcow2: the external data file, as the header names it
    cluster_bytes: int | None = None  #: cluster-size of QAPI ImageInfo; None without clusters, or if QEMU does not say
    bitmaps: Mapping[str, Bitmap] = field(default_factory=dict)


@dataclass(frozen=True)
class DiskNode:
    """A disk and its layers in QEMU, the active one first, without filter nodes."""

    disk: Disk
    layers: tuple[Layer, ...]
    lasting: bool = True  #: False in a storage daemon: bitmaps that it does not store in an image end with the backup
    read_only_reason: str | None = None  #: why the active layer is only read, so that it gets no bitmap
    looked_at: ChainState | None = None  #: what is known of its files, if that was asked for (Source.look_at)

    @property
    def chain(self) -> ChainState:
        """What is known of the files of its layers; nothing is proven if that was not asked for."""
        if self.looked_at is not None:
            return self.looked_at
        return ChainState(
            tuple(
                LayerState(
                    layer.node_name,
                    FileState(layer.filename),
                    FileState(layer.data_file) if layer.data_file is not None else None,
                )
                for layer in self.layers
            )
        )

    @property
    def top(self) -> Layer:
        """The layer that the guest writes to: it is backed up, and has the bitmaps."""
        return self.layers[0]

    @property
    def keeps_bitmaps(self) -> bool:
        """True if bitmaps are stored in the image, so that they outlive the QEMU process."""
        return self.top.stores_bitmaps and self.read_only_reason is None

    @property
    def lists_bitmaps(self) -> bool:
        """True if the bitmaps of all layers are known."""
        return all(layer.lists_bitmaps for layer in self.layers)

    @property
    def bears_checkpoints(self) -> bool:
        """True if a bitmap that is added now can still exist at the next backup."""
        return self.keeps_bitmaps or (self.lasting and self.read_only_reason is None)


@dataclass(frozen=True)
class NodeBitmap:
    """A bitmap on a node, as block-dirty-bitmap-merge takes it (QAPI BlockDirtyBitmap)."""

    node_name: str
    bitmap: str


# target images


@dataclass(frozen=True)
class ImageOptions:
    """Options of qemu-img create for a qcow2 image."""

    cluster_bytes: int = CLUSTER_BYTES
    compression: Compression = Compression.NONE


@dataclass(frozen=True)
class NodeOptions:
    """Options with which QEMU opens an image (members of QAPI BlockdevOptions). The defaults are QEMU's."""

    no_flush: bool = False  #: QEMU leaves it to others to flush the page cache
    detect_zeroes: bool = False  #: zeros that the guest has written use no space

    def members(self) -> dict[str, Any]:
        """Return the members for blockdev-add and blockdev-reopen, without defaults."""
        given: dict[str, Any] = {}
        if self.no_flush:
            given["cache"] = {"no-flush": True}
        if self.detect_zeroes:
            given["detect-zeroes"] = "on"
        return given


QEMUS_OWN = NodeOptions()


# backups in the repository


@dataclass(frozen=True)
class BlocksRecord:
    """What is recorded of an image's content and of its block list (vbackup.repository.block_list)."""

    digest: str  #: of the list's file, such as "blake3:..."
    structure: str  #: digest of the image's header and tables
    data_blocks: int
    zero_blocks: int


@dataclass(frozen=True)
class ChangeRecord:
    """How much of a disk a backup copied, and how well that compresses; a merge of images does not change it."""

    data_bytes: int  #: blocks of data
    zero_bytes: int  #: blocks of zeros
    sampled_bytes: int  #: of the data, how much was compressed to measure that (vbackup.repository.compressibility)
    compressed_bytes: int  #: what it was compressed to
    unusual: str | None = None  #: what is unusual about it, for people (vbackup.repository.change_watch)


@dataclass(frozen=True)
class DiskImage:
    """The image of one disk in a backup, and the base it depends on."""

    dev: str
    level: Level
    base: str | None  #: id of the backup whose checkpoint it starts from and whose image is its backing file
    reason: str  #: why it has this level
    file: str  #: name in the backup's directory
    virtual_size_bytes: int
    file_size_bytes: int
    copied_bytes: int
    digest: str | None  #: of the image file, "sha256:...", in a backup from before there were block lists
    bitmap: str | None  #: the checkpoint's bitmap on the disk; None without one, as for a copy
    node_name: str
    source: str | None  #: path of the disk on the host
    source_format: BlockDriver
    encrypted: bool = False  #: True if the disk was encrypted on the host; the image is not
    chain: ChainState | None = None  #: the disk's layers at that moment; None if it was not recorded
    blocks: BlocksRecord | None = None  #: None in a draft, and in a backup that has no block lists
    change: ChangeRecord | None = None  #: None where ``blocks`` is, and in a backup that did not record it
    checkpoint: str | None = None  #: id of the merged full whose checkpoint ``bitmap`` is; None if it is its own
    full: str | None = None  #: of an image that became a full by a merge: id of the removed one that began as a full


class MachineKind(Enum):
    """What of a machine, beside its disks and its XML, a file of a backup is."""

    NVRAM = "nvram"  #: UEFI variables: the image that the firmware's second flash is
    VARSTORE = "varstore"  #: UEFI variables of QEMU's uefi-vars device, a JSON file
    TPM = "tpm"  #: what swtpm keeps of an emulated TPM: a tar archive of the files in its directory
    KERNEL = "kernel"  #: of a direct boot, and so the next two
    INITRD = "initrd"
    DTB = "dtb"
    MEDIUM = "medium"  #: what is in a CD-ROM or floppy drive

    def file_name(self, dev: str | None = None) -> str:
        """Return the name of such a file in a backup; ``dev`` is the target of the drive that a medium is in."""
        if self is MachineKind.MEDIUM:
            return f"{dev}.medium"
        return "tpm.tar" if self is MachineKind.TPM else self.value


@dataclass(frozen=True)
class MachineFile:
    """A file of a backup that its machine needs beside disks and XML."""

    kind: MachineKind
    size_bytes: int | None  #: None if a backup of an earlier version did not record it
    digest: str  #: of the file, "sha256:..."
    path: str | None  #: where the original has it; None if the XML does not say
    dev: str | None = None  #: the drive that a medium is in
    image_format: ImageFormat | None = None  #: of an NVRAM; None if an earlier version did not record it

    @property
    def file(self) -> str:
        """Name in the backup's directory."""
        return self.kind.file_name(self.dev)


@dataclass(frozen=True)
class GroupMember:
    """One backup of a group."""

    domain_name: str
    domain_uuid: str
    backup_id: str


@dataclass(frozen=True)
class Group:
    """Backups of several domains at the same point in time."""

    id: str
    members: tuple[GroupMember, ...]
    spread_ms: float = 0.0  #: from sending the first transaction to the return of the last; 0 before that


@dataclass(frozen=True)
class Backup:
    """A committed backup. Its id is also the name of its checkpoint."""

    id: str
    sequence: int  #: order in which the domain's backups were committed; clocks may step back
    level: Level
    parent: str | None  #: newest backup that one of its disks depends on
    time: datetime
    domain_name: str
    domain_uuid: str
    disks: tuple[DiskImage, ...]
    left_out: tuple[LeftOut, ...]
    consistency: Consistency
    frozen_ms: int
    duration_s: float
    files: Mapping[str, str]  #: digests by name of domain.xml, live.xml, and nvram, which is in ``machine`` too
    versions: Mapping[str, str]  #: of vbackup, qemu and libvirt
    group: Group | None = None  #: None if it was not made in a group
    host: HostIdentity | None = None  #: None in a backup of a version that did not record it
    machine: tuple[MachineFile, ...] = ()  #: what the machine needs beside disks and XML, as the manifest lists it
    autostart: bool | None = None  #: whether libvirt starts the domain with the host; None if it is not known
    loader: str | None = None  #: path of the UEFI firmware on the host, which is not in the backup

    @property
    def digests(self) -> Mapping[str, str]:
        """Digests by name of all its files that are no images, lists or manifest."""
        return {**self.files, **{one.file: one.digest for one in self.machine}}

    @property
    def machine_files(self) -> tuple[MachineFile, ...]:
        """What the machine needs beside disks and XML; an earlier version listed its NVRAM only among ``files``."""
        if NVRAM not in self.files or self.machine_file(MachineKind.NVRAM) is not None:
            return self.machine
        return (MachineFile(MachineKind.NVRAM, None, self.files[NVRAM], None), *self.machine)

    def machine_file(self, kind: MachineKind) -> MachineFile | None:
        """Return what ``machine`` lists of that kind: one at most unless it is a medium."""
        return next((one for one in self.machine if one.kind is kind), None)

    @property
    def excluded(self) -> tuple[str, ...]:
        """The disks (dev) that the user excluded; with them it would be complete."""
        return tuple(left.dev for left in self.left_out if left.is_excluded)

    @property
    def size_bytes(self) -> int:
        """Total size of its image files."""
        return sum(image.file_size_bytes for image in self.disks)

    def image(self, dev: str) -> DiskImage | None:
        """Return the image of disk ``dev``, or None if this backup has none."""
        return next((image for image in self.disks if image.dev == dev), None)
