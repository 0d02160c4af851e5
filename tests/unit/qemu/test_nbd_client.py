"""The NBD client against a server that lies: an error each time, never a loop, never memory for what it only claims.

tests/contract/test_nbd_client.py and test_nbd_blocks.py have QEMU's server.
"""

from __future__ import annotations

import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import fake_nbd
from tests.fake_nbd import FakeNbd, chunk, data, hole, option_reply, status
from vbackup.errors import MalformedError, StorageError, VbackupError
from vbackup.qemu.nbd_client import ALLOCATION, HOLE, ZERO, NbdClient

SIZE = 4096
CONTENT = bytes(range(256)) * 16
CONTEXTS = {ALLOCATION: [(1024, 0), (2048, HOLE | ZERO), (1024, 0)]}

Answer = Callable[[int, int, int], bytes]


def fake(tmp_path: Path, **settings: object) -> FakeNbd:
    return FakeNbd(tmp_path / "nbd", CONTENT, CONTEXTS, **settings)  # type: ignore[arg-type]


def read(client: NbdClient, start: int, length: int) -> bytes:
    return b"".join(bytes(size) if piece is None else bytes(piece) for _, size, piece in client.read(start, length))


def test_reads_and_blocks_of_a_server_that_is_right(tmp_path: Path) -> None:
    with fake(tmp_path) as server, NbdClient(server.address, context=ALLOCATION) as client:
        assert client.size_bytes == SIZE
        assert read(client, 100, 3000) == CONTENT[100:3100]
        assert list(client.blocks(0, SIZE)) == [(0, 1024, 0), (1024, 2048, 3), (3072, 1024, 0)]
        assert list(client.blocks(1000, 100)) == [(1000, 24, 0), (1024, 76, 3)]


def test_blocks_are_asked_for_again_from_where_an_answer_ends(tmp_path: Path) -> None:
    with fake(tmp_path, max_extents=1) as server, NbdClient(server.address, context=ALLOCATION) as client:
        assert list(client.blocks(512, 3000)) == [(512, 512, 0), (1024, 2048, 3), (3072, 440, 0)]
        assert [start for _, start, _ in server.asked] == [512, 1024, 3072]


def test_last_block_that_reaches_beyond_the_request_is_cut(tmp_path: Path) -> None:
    def answer(handle: int, *_: int) -> bytes:
        return status(handle, (4096, 1))

    with fake(tmp_path, blocks=answer) as server, NbdClient(server.address, context=ALLOCATION) as client:
        assert list(client.blocks(0, 512)) == [(0, 512, 1)]


def test_pieces_in_any_order_are_sorted(tmp_path: Path) -> None:
    def answer(handle: int, *_: int) -> bytes:
        return hole(handle, 1000, 24, is_done=False) + data(handle, 0, CONTENT[:1000])

    with fake(tmp_path, read=answer) as server, NbdClient(server.address) as client:
        assert read(client, 0, 1024) == CONTENT[:1000] + bytes(24)


READS: dict[str, Answer] = {
    "another handle": lambda handle, start, length: data(handle + 1, start, CONTENT[start : start + length]),
    "no magic": lambda handle, start, length: b"\0" * 1000,
    "more than asked for": lambda handle, start, length: data(handle, start, bytes(length + 1)),
    "less than asked for": lambda handle, start, length: data(handle, start, bytes(length - 1)),
    "nothing": lambda handle, start, length: chunk(handle, fake_nbd.NONE),
    "another place": lambda handle, start, length: data(handle, start + 1, bytes(length)),
    "a place twice": lambda handle, start, length: (
        data(handle, start, bytes(length // 2), is_done=False) * 2 + chunk(handle, fake_nbd.NONE)
    ),
    "a hole beyond the end": lambda handle, start, length: hole(handle, start, 2**32 - 1),
    "a hole of nothing": lambda handle, start, length: hole(handle, start, 0, is_done=False) * 100,
    "data of nothing": lambda handle, start, length: data(handle, start, b"", is_done=False) * 100,
    "data without an offset": lambda handle, start, length: chunk(handle, fake_nbd.DATA, b"1234"),
    "a hole without a length": lambda handle, start, length: chunk(handle, fake_nbd.HOLE, bytes(8)),
    "blocks instead": lambda handle, start, length: status(handle, (length, 0)),
    "empty chunks for ever": lambda handle, start, length: chunk(handle, fake_nbd.NONE, is_done=False) * 100,
    "a claim of 4 GiB": lambda handle, start, length: struct.pack(">IHHQI", 0x668E33EF, 1, 1, handle, 2**32 - 1),
    "an error without a code": lambda handle, start, length: chunk(handle, fake_nbd.ERROR, b"12"),
}


@pytest.mark.parametrize("answer", READS.values(), ids=READS)
def test_reply_to_a_read_that_lies_is_an_error(tmp_path: Path, answer: Answer) -> None:
    with fake(tmp_path, read=answer) as server, NbdClient(server.address) as client:
        with pytest.raises(MalformedError, match="The NBD server of vda sent"):
            read(client, 512, 1024)
        with pytest.raises(StorageError):  # the connection is closed: what comes next would not be a reply
            read(client, 512, 1024)


BLOCKS: dict[str, Answer] = {
    "none": lambda handle, start, length: status(handle),
    "of nothing": lambda handle, start, length: status(handle, (0, 0)),
    "of nothing among others": lambda handle, start, length: status(handle, (512, 0), (0, 1), (512, 0)),
    "beyond the end of the disk": lambda handle, start, length: status(handle, (SIZE, 0), (1, 0)),
    "after the end of the request": lambda handle, start, length: status(handle, (length, 0), (512, 1)),
    "of 4 GiB": lambda handle, start, length: status(handle, (2**32 - 1, 0)),
    "of another context": lambda handle, start, length: status(handle, (length, 0), context_id=8),
    "twice": lambda handle, start, length: status(handle, (length, 0), is_done=False) + status(handle, (length, 0)),
    "half of one": lambda handle, start, length: chunk(handle, fake_nbd.STATUS, bytes(3) + b"\7" + bytes(4)),
    "data instead": lambda handle, start, length: data(handle, start, bytes(length)),
    "no answer": lambda handle, start, length: chunk(handle, fake_nbd.NONE),
    "a claim of 4 GiB": lambda handle, start, length: struct.pack(">IHHQI", 0x668E33EF, 1, 5, handle, 2**32 - 4),
}


@pytest.mark.parametrize("answer", BLOCKS.values(), ids=BLOCKS)
def test_description_of_blocks_that_lies_is_an_error(tmp_path: Path, answer: Answer) -> None:
    with (
        fake(tmp_path, blocks=answer) as server,
        NbdClient(server.address, context=ALLOCATION) as client,
        pytest.raises(MalformedError, match="The NBD server of vda sent"),
    ):
        list(client.blocks(512, 1024))


@pytest.mark.parametrize("request_of", ["read", "blocks"])
def test_error_of_the_server_has_its_words(tmp_path: Path, request_of: str) -> None:
    def answer(handle: int, *_: int) -> bytes:
        return chunk(handle, fake_nbd.ERROR, struct.pack(">IH", 5, 0))

    with (
        fake(tmp_path, **{request_of: answer}) as server,
        NbdClient(server.address, context=ALLOCATION) as client,
        pytest.raises(StorageError, match=r"vda cannot be \w+ at byte 512: Input/output error"),
    ):
        list(getattr(client, request_of)(512, 512))


OPTIONS: dict[str, Callable[[int, bytes], bytes | None]] = {
    "garbage": lambda option, data: bytes(1000),
    "a reply to another option": lambda option, data: option_reply(option + 1, fake_nbd.ACK),
    "information for ever": lambda option, data: option_reply(option, fake_nbd.INFO, b"12") * 1000,
    "a claim of 4 GiB": lambda option, data: struct.pack(">QIII", 0x3E889045565A9, option, 1, 2**32 - 1),
    "no structured replies": lambda option, data: option_reply(option, fake_nbd.UNKNOWN) if option == 8 else None,
    "no export": lambda option, data: option_reply(option, fake_nbd.UNKNOWN, b"no") if option == 7 else None,
    "no size": lambda option, data: option_reply(option, fake_nbd.ACK) if option == 7 else None,
    "a size beyond all": lambda option, data: (
        option_reply(7, fake_nbd.INFO, struct.pack(">HQH", 0, 2**64 - 1, 1)) + option_reply(7, fake_nbd.ACK)
        if option == 7
        else None
    ),
    "no context": lambda option, data: option_reply(option, fake_nbd.ACK) if option == 10 else None,
    "another context": lambda option, data: (
        option_reply(10, fake_nbd.META_CONTEXT, bytes(4) + b"x:y") + option_reply(10, fake_nbd.ACK)
        if option == 10
        else None
    ),
    "a context without an id": lambda option, data: (
        option_reply(10, fake_nbd.META_CONTEXT, b"1") + option_reply(10, fake_nbd.ACK) if option == 10 else None
    ),
}


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_handshake_that_lies_is_an_error(tmp_path: Path, option: Callable[[int, bytes], bytes | None]) -> None:
    with (
        fake(tmp_path, option=option) as server,
        pytest.raises(MalformedError, match="NBD server"),
        NbdClient(server.address, context=ALLOCATION),
    ):
        pass


def test_what_is_no_nbd_server_is_an_error(tmp_path: Path) -> None:
    with (
        fake(tmp_path, greeting=b"SSH-2.0-OpenSSH_9.2p1\r\n") as server,
        pytest.raises(MalformedError, match="no NBD server of QEMU at nbd"),
        NbdClient(server.address),
    ):
        pass


@pytest.mark.parametrize("part", ["greeting", "read"])
def test_silent_server_ends_at_the_deadline(tmp_path: Path, part: str) -> None:
    settings = {"greeting": b""} if part == "greeting" else {"read": lambda *_: b""}
    began = time.monotonic()
    with (
        fake(tmp_path, **settings) as server,
        pytest.raises(StorageError, match=r"timed out|no whole answer"),
        NbdClient(server.address, timeout_s=0.2) as client,
    ):
        read(client, 0, 512)
    assert time.monotonic() - began < 10


def test_dripping_server_ends_at_the_deadline(tmp_path: Path) -> None:
    def answer(handle: int, start: int, length: int) -> Iterator[bytes]:
        for offset in range(start, start + length, 64):
            yield data(handle, offset, bytes(64), is_done=False)
            time.sleep(0.05)

    with (
        fake(tmp_path, read=answer) as server,
        NbdClient(server.address, timeout_s=0.3) as client,
        pytest.raises(StorageError, match=r"no whole answer|timed out"),
    ):
        read(client, 0, 4096)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["read", "blocks"]), st.binary(max_size=120), st.booleans())
def test_any_bytes_end_in_an_error(request_of: str, noise: bytes, has_head: bool) -> None:
    """With a head that is right, the noise is length, payload, and more chunks."""
    with tempfile.TemporaryDirectory() as directory:
        server = fake(Path(directory))

        def answer(handle: int, *_: int) -> Iterator[bytes]:
            yield (
                struct.pack(">IHHQ", 0x668E33EF, 0, 1 if request_of == "read" else 5, handle) if has_head else b""
            ) + noise
            server.drop()

        setattr(server, request_of, answer)
        with (
            server,
            NbdClient(server.address, context=ALLOCATION, timeout_s=10) as client,
            pytest.raises((MalformedError, StorageError)),
        ):
            list(getattr(client, request_of)(0, SIZE))


def test_what_is_not_on_the_disk_is_not_asked_for(tmp_path: Path) -> None:
    with fake(tmp_path) as server, NbdClient(server.address, context=ALLOCATION) as client:
        for start, length in ((0, SIZE + 1), (SIZE, 1), (-1, 1), (0, 0)):
            with pytest.raises(ValueError, match="are not in 4096 bytes"):
                read(client, start, length)
        assert server.asked == []


def test_tls_without_credentials_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    with fake(tmp_path) as server:
        address = type(server.address)("vda", path=server.path, is_tls=True)
        with pytest.raises(VbackupError, match="needs TLS credentials"), NbdClient(address):
            pass
