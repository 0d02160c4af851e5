"""Hypothesis strategies for transactions: any of the model's, over any names or over those of a test."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from vbackup.qapi import actions

Text = SearchStrategy[str]
INT64 = st.integers(-(2**63), 2**63 - 1)
#: Any text that QEMU takes.
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=20)

SCALARS = st.none() | st.booleans() | INT64 | st.floats() | st.text(max_size=10)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


@dataclass(frozen=True)
class Transaction:
    """The arguments of QMP's ``transaction``."""

    actions: tuple[actions.Action, ...]
    completion_mode: actions.CompletionMode

    def document(self) -> dict[str, Any]:
        """As JSON-ready data, without ``properties`` where they are the default."""
        arguments: dict[str, Any] = {"actions": [action.document() for action in self.actions]}
        if self.completion_mode is not actions.CompletionMode.INDIVIDUAL:
            arguments["properties"] = {"completion-mode": self.completion_mode.value}
        return arguments


@dataclass(frozen=True)
class Names:
    """Where the names in actions come from."""

    nodes: Text = TEXT
    bitmaps: Text = TEXT
    targets: Text = TEXT  #: nodes to copy to
    jobs: Text = TEXT
    overlays: Text = TEXT  #: nodes to put above others
    new_nodes: Text = TEXT  #: names for nodes
    target_files: Text = TEXT
    overlay_files: Text = TEXT
    snapshots: Text = TEXT


ANY_NAMES = Names()


def maybe(strategy: SearchStrategy[Any], *, often: bool = False) -> SearchStrategy[Any]:
    """None, mostly or half the time: an optional member."""
    return st.one_of(st.none(), strategy) if often else st.one_of(st.none(), st.none(), st.none(), strategy)


def _backup(names: Names) -> dict[str, SearchStrategy[Any]]:
    on_error = st.sampled_from(actions.BlockdevOnError)
    return {
        "device": names.nodes,
        "sync": st.sampled_from(actions.MirrorSyncMode),
        "job_id": maybe(names.jobs, often=True) | names.jobs,
        "speed": maybe(st.sampled_from([0, -1, 65536, 2**63 - 1]) | INT64),
        "bitmap": maybe(names.bitmaps, often=True),
        "bitmap_mode": maybe(st.sampled_from(actions.BitmapSyncMode), often=True),
        "compress": maybe(st.booleans()),
        "on_source_error": maybe(on_error),
        "on_target_error": maybe(on_error),
        "auto_finalize": maybe(st.booleans()),
        "auto_dismiss": maybe(st.booleans()),
        "filter_node_name": maybe(names.new_nodes),
        "discard_source": st.just(None) | maybe(st.booleans()),
        "on_cbw_error": st.just(None) | maybe(st.sampled_from(actions.OnCbwError)),
        "x_perf": maybe(performance()),
    }


def performance() -> SearchStrategy[actions.BackupPerf]:
    """Any x-perf."""
    return st.builds(
        actions.BackupPerf,
        use_copy_range=maybe(st.booleans()),
        max_workers=maybe(st.integers(-1, 64) | INT64),
        max_chunk=maybe(st.sampled_from([-1, 0, 1, 65536, 2**20])),
        min_cluster_size=st.just(None) | maybe(st.sampled_from([0, 3, 65536, 2**64 - 1])),
    )


def sources(names: Names) -> SearchStrategy[tuple[Any, ...]]:
    """The sources of a merge, in both forms."""
    one = names.bitmaps | st.builds(actions.BlockDirtyBitmap, names.nodes, names.bitmaps)
    return st.lists(one, max_size=3).map(tuple)


def _by_type(names: Names) -> dict[str, SearchStrategy[actions.Action]]:
    mode = maybe(st.sampled_from(actions.NewImageMode), often=True)
    image_format = maybe(st.just("qcow2"), often=True)
    granularity = st.sampled_from([0, 512, 1000, 4096, 65536, 2**31]) | st.integers(0, 2**32 - 1)
    node_and_name = (
        actions.BlockDirtyBitmapClear,
        actions.BlockDirtyBitmapEnable,
        actions.BlockDirtyBitmapDisable,
        actions.BlockDirtyBitmapRemove,
    )
    made: list[tuple[type[actions.Action], SearchStrategy[Any]]] = [
        (actions.Abort, st.builds(actions.Abort)),
        (
            actions.BlockDirtyBitmapAdd,
            st.builds(
                actions.BlockDirtyBitmapAdd,
                names.nodes,
                names.bitmaps,
                granularity=maybe(granularity),
                persistent=maybe(st.booleans()),
                disabled=maybe(st.booleans()),
            ),
        ),
        *((one, st.builds(one, names.nodes, names.bitmaps)) for one in node_and_name),
        (
            actions.BlockDirtyBitmapMerge,
            st.builds(actions.BlockDirtyBitmapMerge, names.nodes, names.bitmaps, sources(names)),
        ),
        (actions.BlockdevBackup, st.builds(actions.BlockdevBackup, target=names.targets, **_backup(names))),
        (
            actions.DriveBackup,
            st.builds(actions.DriveBackup, target=names.target_files, format=image_format, mode=mode, **_backup(names)),
        ),
        (actions.BlockdevSnapshot, st.builds(actions.BlockdevSnapshot, names.nodes, names.overlays)),
        (
            actions.BlockdevSnapshotInternalSync,
            st.builds(actions.BlockdevSnapshotInternalSync, names.nodes, names.snapshots),
        ),
        (
            actions.BlockdevSnapshotSync,
            st.builds(
                actions.BlockdevSnapshotSync,
                names.overlay_files,
                device=maybe(names.nodes),
                node_name=maybe(names.nodes, often=True),
                snapshot_node_name=maybe(names.new_nodes, often=True),
                format=image_format,
                mode=mode,
            ),
        ),
    ]
    return {one.TYPE: strategy for one, strategy in made}


def action(names: Names = ANY_NAMES, kinds: Sequence[str] = tuple(actions.TYPES)) -> SearchStrategy[actions.Action]:
    """Any action of these types."""
    by_type = _by_type(names)
    return st.sampled_from(sorted(kinds)).flatmap(lambda kind: by_type[kind])


def transaction(
    names: Names = ANY_NAMES, kinds: Sequence[str] = tuple(actions.TYPES), *, max_size: int = 6
) -> SearchStrategy[Transaction]:
    """Any transaction of these actions; one in four is grouped."""
    individual, grouped = actions.CompletionMode.INDIVIDUAL, actions.CompletionMode.GROUPED
    mode = st.sampled_from([individual, individual, individual, grouped])
    listed = st.lists(action(names, kinds), max_size=max_size).map(tuple)
    return st.builds(Transaction, listed, mode)


@st.composite
def mutated(draw: st.DrawFn, documents: SearchStrategy[Any], odd: SearchStrategy[Any] = JSON) -> Any:
    """A JSON document with one place of it removed, put under another name, or replaced."""
    document = copy.deepcopy(draw(documents))
    places = list(_places(document))
    if not places:
        return draw(odd)
    container, key = draw(st.sampled_from(places))
    how = draw(st.sampled_from(["replace", "remove", "rename" if isinstance(container, dict) else "replace"]))
    value = container[key]
    if how == "replace":
        container[key] = draw(odd)
    else:
        del container[key]
        if how == "rename":
            container[draw(st.text(max_size=10))] = value
    return document


def _places(value: Any) -> Any:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from _places(inner)
