"""Read an NBD export of QEMU as vbackup.qemu.qcow2_layer reads a qcow2 image: where it has data, and the data.

What base:allocation calls zeros, it does not hold. So an image on another host is compared with block lists as one on
this host is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType

from vbackup.errors import ChainError, MalformedError, StorageError
from vbackup.model import CLUSTER_BYTES
from vbackup.qemu.nbd_address import NbdAddress
from vbackup.qemu.nbd_client import ALLOCATION, MAX_READ_BYTES, ZERO, NbdClient
from vbackup.qemu.qcow2_layer import TABLE_BYTES, Extent


class NbdLayer:
    """An export, in clusters of 64 KiB. A context manager; ``read`` can be called in several threads.

    Entering raises StorageError or MalformedError if the server cannot be reached; its methods raise ChainError if the
    export cannot be read.
    """

    def __init__(self, address: NbdAddress) -> None:
        self._address = address
        self._of_thread = threading.local()
        self._lock = threading.Lock()

    def __enter__(self) -> NbdLayer:
        self._stack = ExitStack()
        self._first = self._stack.enter_context(NbdClient(self._address, context=ALLOCATION))
        self.virtual_size_bytes = self._first.size_bytes
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _err: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._stack.close()

    def tables(self) -> Iterator[int]:
        """Yield the numbers of the parts of 512 MiB that have data, in ascending order."""
        last = -1
        for start, length_bytes in self._data(0, self.virtual_size_bytes):
            for number in range(max(start // TABLE_BYTES, last + 1), (start + length_bytes - 1) // TABLE_BYTES + 1):
                last = number
                yield number

    def extents(self, number: int) -> list[Extent]:
        """Return the clusters with data in that part."""
        begin, end = number * TABLE_BYTES, min((number + 1) * TABLE_BYTES, self.virtual_size_bytes)
        extents: list[Extent] = []
        done = 0
        for start, length_bytes in self._data(begin, end) if begin < end else ():
            first = max(done, (start - begin) // CLUSTER_BYTES)
            done = max(done, -(-(start + length_bytes - begin) // CLUSTER_BYTES))
            if done > first:
                extents.append(Extent(first, done - first, begin + first * CLUSTER_BYTES))
        return extents

    def read(self, extent: Extent, first: int, clusters: int, buffer: bytearray | None = None) -> memoryview:
        """Return the content of some clusters of an extent, with zeros after the end of the disk."""
        assert extent.offset is not None
        length = clusters * CLUSTER_BYTES
        data = memoryview(bytearray(length) if buffer is None else buffer)[:length]
        begin = extent.offset + first * CLUSTER_BYTES
        end = min(begin + length, self.virtual_size_bytes)
        data[max(0, end - begin) :] = bytes(length - max(0, end - begin))
        try:
            client = self._client()
            for start in range(begin, end, MAX_READ_BYTES):
                for offset, piece_bytes, content in client.read(start, min(MAX_READ_BYTES, end - start)):
                    at = offset - begin
                    data[at : at + piece_bytes] = bytes(piece_bytes) if content is None else content
        except (StorageError, MalformedError) as err:
            raise ChainError(str(err)) from err
        return data

    def _data(self, start_bytes: int, end_bytes: int) -> Iterator[tuple[int, int]]:
        try:
            for start, length_bytes, flags in self._first.blocks(start_bytes, end_bytes - start_bytes):
                if not flags & ZERO:
                    yield start, length_bytes
        except (StorageError, MalformedError) as err:
            raise ChainError(str(err)) from err

    def _client(self) -> NbdClient:
        client: NbdClient | None = getattr(self._of_thread, "client", None)
        if client is None:
            client = NbdClient(self._address).__enter__()
            with self._lock:
                self._stack.push(client)
            self._of_thread.client = client
        return client
