"""What differs between two backups by their lists is what differs between the disks that QEMU reads from them."""

from __future__ import annotations

import itertools
import subprocess
from typing import TYPE_CHECKING, Any

import libvirt

if TYPE_CHECKING:
    from tests.conftest import Command
    from tests.end_to_end.chains import Chain

BLOCK = 65536
ZEROS = bytes(BLOCK)


def contents(chain: Chain, point: dict[str, Any], dev: str) -> list[bytes]:
    """The blocks of the disk at that backup, as qemu-img reads its image."""
    image = chain.repository / chain.uuid / point["id"] / f"{dev}.qcow2"
    raw = chain.tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(image), str(raw)], check=True)
    data = raw.read_bytes()
    return [data[start : start + BLOCK].ljust(BLOCK, b"\0") for start in range(0, len(data), BLOCK)]


def expected(before: list[bytes], after: list[bytes]) -> dict[int, str]:
    found = {}
    for number, (was, now) in enumerate(itertools.zip_longest(before, after, fillvalue=ZEROS)):
        if was != now:
            found[number] = "zero" if now == ZEROS else "new" if was == ZEROS else "data"
    return found


def differing(document: dict[str, Any], dev: str) -> dict[int, str]:
    return {
        block: one["kind"]
        for one in document["extents"]
        if one["dev"] == dev
        for block in range(one["start"] // BLOCK, -(-(one["start"] + one["length"]) // BLOCK))
    }


def test_difference_is_that_of_the_bytes(chain: Chain, command: Command) -> None:
    """Every pair of points of a chain with every level: data, zeros in all forms, the same again."""
    points = [chain.backup()]
    chain.machine.write("vda", "write -P 2 64k 192k", "write -z 512k 128k", "write -P 1 1M 64k", "write -P 3 4M 100k")
    points.append(chain.backup("--compress", "zlib"))
    chain.machine.write("vda", "write -P 1 64k 64k", "discard 4M 64k", "write -P 0 1M 64k")
    chain.machine.write("vdb", "write -P 7 7M 1M", "write -P 1 0 2M")
    points.append(chain.backup("--level", "differential"))
    points.append(chain.backup("--level", "copy"))
    chain.machine.write("vdb", "write -P 8 3M 4k")
    points.append(chain.backup())
    blocks = {(one["id"], dev): contents(chain, one, dev) for one in points for dev in ("vda", "vdb")}
    total = 0
    for before, after in itertools.permutations(points, 2):
        words = ("diff", "bases", before["id"], after["id"], "-r", chain.repository, "--json", "--extents")
        document = command(*words).document
        for disk in document["disks"]:
            wanted = expected(*(blocks[one["id"], disk["dev"]] for one in (before, after)))
            assert differing(document, disk["dev"]) == wanted
            assert disk["changed_bytes"] == len(wanted) * BLOCK
            assert disk["to_zeros_bytes"] == sum(kind == "zero" for kind in wanted.values()) * BLOCK
            assert disk["undecided_bytes"] == 0
            total += len(wanted)
    assert total > 100


def test_disk_that_has_grown_and_room(chain: Chain, command: Command) -> None:
    """Beyond the end of the smaller disk are zeros. Its data is not needed where the increment has overwritten it."""
    before = chain.backup()
    size_bytes = 10 * 1024 * 1024 + 512
    chain.machine.handle.domain.blockResize("vda", size_bytes, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    chain.machine.write("vda", "write -P 2 9M 1M", "write -P 3 0 1M")
    after = chain.backup()
    document = command("diff", before["id"], "-r", chain.repository, "--json", "--extents", "--disk", "vda").document
    wanted = expected(*(contents(chain, one, "vda") for one in (before, after)))
    assert differing(document, "vda") == wanted
    assert document["disks"][0]["from_zeros_bytes"] == 1024 * 1024
    [domain] = command("usage", "bases", "-r", chain.repository, "--json").document["domains"]
    full, increment = domain["backups"]
    assert increment["freed_bytes"] == increment["own_bytes"]
    assert 1024 * 1024 <= full["freed_bytes"] < full["own_bytes"] - 1024 * 1024
