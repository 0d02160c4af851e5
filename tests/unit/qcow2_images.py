"""Make qcow2 images entry by entry, also such as QEMU never writes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

CLUSTER_BYTES = 64 * 1024
TABLE_CLUSTERS = CLUSTER_BYTES // 8
COPIED, COMPRESSED, ZERO = 1 << 63, 1 << 62, 1 << 0

#: What a cluster is: bytes are data (or, of another length, stored as they are), None is zeros, a number is its entry.
Cluster = "bytes | int | None | Packed | Masked"


@dataclass(frozen=True)
class Packed:
    """A compressed cluster."""

    content: bytes
    is_zstd: bool = False

    @property
    def packed(self) -> bytes:
        if self.is_zstd:
            import zstandard

            return zstandard.ZstdCompressor().compress(self.content)
        deflate = zlib.compressobj(wbits=-12)
        return deflate.compress(self.content) + deflate.flush()


@dataclass(frozen=True)
class Masked:
    """Zeros that hide data: the cluster is allocated and has the flag."""

    content: bytes


@dataclass
class Image:
    """An image; ``write`` makes the file."""

    size_bytes: int
    clusters: Mapping[int, bytes | int | Packed | Masked | None]
    version: int = 3
    features: int = 0
    compression: int = 0
    copied: int = COPIED
    crypt_method: int = 0
    backing: str = ""
    l1_entries: int | None = None
    l1: Mapping[int, int] = field(default_factory=dict)  #: entries in place of those that belong there
    l1_offset: int | None = None
    refcount_offset: int = CLUSTER_BYTES
    refcount_clusters: int = 1
    refcount_table: Mapping[int, int] = field(default_factory=lambda: {0: 2 * CLUSTER_BYTES})
    end: bytes = b""  #: after the last cluster

    def write(self, path: Path) -> Path:
        tables = sorted({number // TABLE_CLUSTERS for number in self.clusters})
        entries = self.l1_entries
        if entries is None:
            entries = -(-self.size_bytes // (TABLE_CLUSTERS * CLUSTER_BYTES))
        l1_clusters = max(1, -(-min(entries, 1 << 20) * 8 // CLUSTER_BYTES))
        l2_offset = (3 + l1_clusters) * CLUSTER_BYTES
        offset = l2_offset + len(tables) * CLUSTER_BYTES
        l2 = {table: [0] * TABLE_CLUSTERS for table in tables}
        bodies = bytearray()
        for number, cluster in sorted(self.clusters.items()):
            entry = 0
            if isinstance(cluster, int):
                entry = cluster
            elif cluster is None:
                entry = ZERO
            elif isinstance(cluster, Packed):
                packed = cluster.packed
                place = offset + len(bodies)
                sectors = (place + len(packed) - 1) // 512 - place // 512
                entry = COMPRESSED | sectors << 54 | place
                bodies += packed
            else:
                bodies += bytes(-(offset + len(bodies)) % CLUSTER_BYTES)
                content, flag = (cluster.content, ZERO) if isinstance(cluster, Masked) else (cluster, 0)
                entry = offset + len(bodies) | self.copied | flag
                bodies += content
            l2[number // TABLE_CLUSTERS][number % TABLE_CLUSTERS] = entry
        l1 = {table: l2_offset + place * CLUSTER_BYTES | self.copied for place, table in enumerate(tables)}
        l1.update(self.l1)
        with path.open("wb") as file:
            file.write(self._header(entries))
            file.seek(CLUSTER_BYTES)
            for place, entry in self.refcount_table.items():
                file.seek(CLUSTER_BYTES + 8 * place)
                file.write(struct.pack(">Q", entry))
            file.seek(2 * CLUSTER_BYTES)
            file.write(bytes(CLUSTER_BYTES))
            for place, entry in l1.items():
                file.seek(3 * CLUSTER_BYTES + 8 * place)
                file.write(struct.pack(">Q", entry))
            file.seek(l2_offset)
            for table in tables:
                file.write(struct.pack(f">{TABLE_CLUSTERS}Q", *l2[table]))
            file.write(bodies + self.end)
            file.truncate(max(file.tell(), l2_offset))
        return path

    def _header(self, entries: int) -> bytes:
        l1_offset = 3 * CLUSTER_BYTES if self.l1_offset is None else self.l1_offset
        length = 104 if self.version == 3 else 72
        backing_offset = length + 8 if self.backing else 0
        data = struct.pack(
            ">4sIQIIQIIQQIIQ",
            *(b"QFI\xfb", self.version, backing_offset, len(self.backing), 16, self.size_bytes, self.crypt_method),
            *(entries, l1_offset, self.refcount_offset, self.refcount_clusters, 0, 0),
        )
        if self.version == 3:
            length = 112 if self.compression else 104
            data += struct.pack(">QQQII", self.features, 0, 0, 4, length)
            if self.compression:
                data += bytes([self.compression]).ljust(8, b"\0")
        return data + bytes(8) + self.backing.encode()
