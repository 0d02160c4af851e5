"""The example of vbackup-repository(5) that checks a block with standard tools, done as it is written there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vbackup.repository import block_scan
from vbackup.repository.block_list import BLOCK_BYTES, SEGMENT_BYTES, Algorithm, algorithm_of, best_algorithm

PAGE = Path(__file__).parents[2] / "man" / "vbackup-repository.5.rst"
SHA256 = algorithm_of("sha256:", where="here")
#: What is written at which block: one in each of the segments 0 and 1, behind others that are data or zeros.
BLOCKS = {0: 1, 3: 2, 5: 3, 8195: 4, 8200: 5}


def example() -> str:
    match = re.search(r"\*\*How to check one block\*\*.*?::\n\n(.*?)\n\n\S", PAGE.read_text(), re.S)
    assert match is not None
    return "\n".join(line[4:] for line in match[1].splitlines())


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backup")
    image = path / "vda.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, str(3 * SEGMENT_BYTES)], check=True)
    writes = [f"write -P {byte} {block * BLOCK_BYTES} 64k" for block, byte in BLOCKS.items()]
    zeros = [f"write -z {block * BLOCK_BYTES} 64k" for block in (1, 8193)]
    commands = [word for command in (*writes, *zeros) for word in ("-c", command)]
    subprocess.run(["qemu-io", "-f", "qcow2", *commands, image], check=True, capture_output=True)
    return path


@pytest.mark.parametrize("algorithm", [SHA256, best_algorithm()], ids=lambda algorithm: algorithm.name)
@pytest.mark.parametrize("block", BLOCKS)
def test_recorded_digest_and_that_of_the_block_are_the_same(
    directory: Path, block: int, algorithm: Algorithm, tmp_path: Path
) -> None:
    block_scan.make(directory / "vda.qcow2", directory / "vda.blocks", algorithm=algorithm, check=lambda: None)
    script = example()
    for old, new in (
        ("B=8195", f"B={block}"),
        ("REPO/UUID/ID", str(directory)),
        ("/tmp/block", str(tmp_path / "block")),
        *([("b3sum --no-names", "sha256sum")] if algorithm is SHA256 else []),
    ):
        assert old in script
        script = script.replace(old, new)
    b3sum = tmp_path / "b3sum"  # not every machine has it
    b3sum.write_text(
        f"#!{sys.executable}\nimport blake3, sys\nprint(blake3.blake3(open(sys.argv[-1], 'rb').read()).hexdigest())\n"
    )
    b3sum.chmod(0o700)
    done = subprocess.run(
        ["sh", "-eu", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    number, held, data, recorded, found = done.stdout.splitlines()
    expected = algorithm.digest(bytes([BLOCKS[block]]) * BLOCK_BYTES).hex()
    assert (number.strip(), held, data) == (str(algorithm.number), "held: 1", "data: 1")
    assert recorded == expected
    assert found.split()[0] == expected
