"""A link between two network namespaces that brings packets late, as netem does, or loses all of them.

Some kernels have no sch_netem. Here each namespace has a TUN device, and a process carries packets from one device to
the other: those that leave this namespace wait for the delay first, those that come back do not. The delay is added
once to each round trip, as by ``tc qdisc add dev LINK root netem delay 20ms`` on one side. A link that is cut loses
what is under way and all that comes: nothing is refused, no connection ends, no sender gets an error.

The devices carry segments as large as the kernel makes them (virtio_net_hdr, TSO), as a veth pair does, so the process
has one packet to carry where a wire has forty.
"""

from __future__ import annotations

import collections
import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

_TUN = "/dev/net/tun"
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6 = 1, 2, 4
_CLONE_NEWNET = 0x40000000
#: The largest segment, with the header of virtio.
_PACKET_BYTES = 66 * 1024
#: How many packets are read before those that are due are sent.
_BATCH = 64


def reason_not_to_start() -> str | None:
    """Why there can be no such link here; None if there can."""
    try:
        os.close(os.open(_TUN, os.O_RDWR))
    except OSError as err:
        return f"{_TUN}: {err.strerror}"
    return None


class DelayedLink:
    """The process that carries the packets, and its devices; a context manager. Root is needed.

    Within the block there is a device ``here`` in this namespace, and ``there`` in the network namespace of process
    ``pid``. They are to be given addresses, and set up.
    """

    def __init__(self, here: str, there: str, *, pid: int, delay_s: float) -> None:
        self._argv = [sys.executable, "-m", "tests.delayed_link", here, there, str(pid), str(delay_s)]

    def __enter__(self) -> DelayedLink:
        self._process = subprocess.Popen(
            self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
        )
        try:
            self._await("ready")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()  # the devices go with it
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def cut(self) -> None:
        """Lose all packets from now on; those that are under way, too."""
        self._order("cut")

    def mend(self) -> None:
        """Carry packets again."""
        self._order("mend")

    def _order(self, word: str) -> None:
        assert self._process.stdin is not None
        print(word, file=self._process.stdin, flush=True)
        self._await(word)

    def _await(self, word: str) -> None:
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        assert said == f"{word}\n", f"the link said {said!r} and not {word!r}"


def _device(name: str) -> int:
    """Make a device in the network namespace of this process; returns its descriptor, with which it ends."""
    fd = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR))
    fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6)
    return fd


def _enter_network(pid: int) -> None:
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    os.close(fd)


class _Direction:
    """Packets from one device to the other, which are under way for ``delay_s``."""

    def __init__(self, source: int, target: int, delay_s: float) -> None:
        self.source, self._target, self._delay_s = source, target, delay_s
        self._under_way: collections.deque[tuple[float, bytes]] = collections.deque()

    def take(self) -> None:
        """Read what has been sent into it."""
        due_s = time.monotonic() + self._delay_s
        with suppress(BlockingIOError):
            for _ in range(_BATCH):
                self._under_way.append((due_s, os.read(self.source, _PACKET_BYTES)))

    def bring(self) -> float | None:
        """Deliver what is due; returns in how many seconds the next packet is, None if none is under way."""
        while self._under_way:
            left_s = self._under_way[0][0] - time.monotonic()
            if left_s > 0:
                return left_s
            packet = self._under_way.popleft()[1]
            with suppress(OSError):  # a device that is down, or takes no more, loses it, as a wire does
                os.write(self._target, packet)
        return None

    def lose(self) -> None:
        """Drop what is under way."""
        self._under_way.clear()


def _carry(directions: list[_Direction]) -> None:
    """Carry packets until standard input ends; a line of it is an order."""
    is_cut = False
    while True:
        if is_cut:
            for one in directions:
                one.lose()
        waits_s = [left_s for one in directions if (left_s := one.bring()) is not None]
        sources = {one.source: one for one in directions}
        # select, as epoll counts in milliseconds.
        readable, _, _ = select.select([0, *sources], [], [], min(waits_s, default=None))
        for fd in readable:
            if fd in sources:
                sources[fd].take()
        if 0 in readable:
            word = sys.stdin.readline().strip()
            if not word:
                return
            is_cut = word == "cut"
            print(word, flush=True)


def _main(here: str, there: str, pid: str, delay_s: str) -> None:
    os.nice(-20)  # it must be late by the delay, and not by what else needs the processors
    near = _device(here)
    _enter_network(int(pid))
    far = _device(there)
    print("ready", flush=True)
    _carry([_Direction(near, far, float(delay_s)), _Direction(far, near, 0.0)])


if __name__ == "__main__":
    _main(*sys.argv[1:])
