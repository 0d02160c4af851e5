"""A bit is set without a write to any disk: every QEMU must do it, or end marks would distrust every base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.contract.conftest import MIB
from vbackup import names
from vbackup.engine import scratch
from vbackup.names import Naming
from vbackup.qemu.monitor import block_graph
from vbackup.report import Silent
from vbackup.stop import Stop
from vbackup.undo import Undo

if TYPE_CHECKING:
    from tests.contract.conftest import Bench

REPOSITORY = "0123456789ab"


def test_only_the_last_granule_of_each_scratch_node_is_set(bench: Bench) -> None:
    sizes = {names.Naming(REPOSITORY).scratch_node(0): 16 * MIB, names.Naming(REPOSITORY).scratch_node(1): 3 * MIB}
    with Undo(Silent()) as undo:
        scratch.prepare(bench.monitor, sizes, naming=Naming(REPOSITORY), undo=undo, stop=Stop())
        graph = block_graph(bench.monitor)
        for node in sizes:
            assert graph.bitmaps(node)[names.Naming(REPOSITORY).scratch_job].dirty_bytes == 65536
    assert not [
        name for name in block_graph(bench.monitor).node_names() if name.startswith(names.Naming(REPOSITORY).prefix)
    ]
