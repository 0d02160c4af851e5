"""Run ``vbackup`` and let QEMU make a full copy of each disk at the very moment of the backup.

    python -m tests.demo.with_reference DIR -- backup DOMAIN ...

The copies are made by separate blockdev-backup jobs, which are added to the transaction that
vbackup sends; nothing else of vbackup is changed. They are independent of its bitmaps and images, and
so what a restore of that backup must be equal to. They are DIR/vda.qcow2 and so on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.demo.domain import NAME
from tests.lab import Machine, References
from vbackup.cli import main as vbackup
from vbackup.domain import domain_xml
from vbackup.domain.host import Host
from vbackup.qemu.monitor import block_graph


def main(arguments: Sequence[str]) -> int:
    """Run the command line behind the "--"; returns its exit status."""
    directory, separator, *command_line = arguments
    assert separator == "--", "usage: python -m tests.demo.with_reference DIR -- backup DOMAIN ..."
    references = References(Path(directory).absolute())  # QEMU has another working directory
    with references.taken(pytest.MonkeyPatch()):
        status = vbackup(command_line)
    if status == 0:
        with Host() as host:
            machine = Machine(host.domain(NAME))
            images = references.finish(machine)
            graph = block_graph(machine.monitor)
            for disk in domain_xml.parse(machine.handle.live_xml()).disks:
                images[graph.disk_node(disk).top.node_name].rename(Path(directory, f"{disk.dev}.qcow2"))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
