"""Copies of real images to a target: every point there is compared with what the disks contained.

These are also the tests of copies.upload, copies.download, copies.composing, copies.staging, copies.points and
copies.view, of operations.copy, operations.copy_verify, operations.copy_prune and operations.fetch, which need real
images, qemu-img and a storage daemon.

Kills: a child process ends itself before its n-th call of the store, or in the middle of one; the next run goes on.
VBACKUP_KILLS=1 takes every call, the default is every third. VBACKUP_TREES is the number of random trees.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.fake_store import FakeStore
from tests.trees import BLOCK, State, Tree, random_changes
from tests.unit.builders import NOON, Recorder
from vbackup.copies import outgoing, parts, view
from vbackup.copies.ledger import of_targets
from vbackup.copies.target import MANIFEST, UPLOAD
from vbackup.copies.view import View
from vbackup.errors import (
    BusyError,
    ChainError,
    InterruptedBySignalError,
    MalformedError,
    NeededError,
    StorageError,
    VbackupError,
)
from vbackup.images import flatten
from vbackup.model import ImageFormat
from vbackup.operations import consolidation, copy, copy_prune, copy_verify, fetch, serve
from vbackup.operations.copy import Copied, CopyRequest
from vbackup.operations.copy_prune import CopiesPruned, CopyPruneRequest
from vbackup.operations.copy_verify import CopyVerifyRequest
from vbackup.operations.fetch import FetchRequest
from vbackup.qemu.nbd_address import NbdAddress
from vbackup.qemu.nbd_client import NbdClient
from vbackup.repository import image_check, readers
from vbackup.repository.choice import Wanted
from vbackup.repository.repository import COPIES, Repository
from vbackup.repository.retention import Rules
from vbackup.stop import Stop
from vbackup.stores.age_keys import Identity
from vbackup.stores.directory import DirectoryStore
from vbackup.stores.sealed import Keys
from vbackup.stores.store import Deletion, Seen, Source, Store

SIZE = 1024 * 1024
EVERY = int(os.environ.get("VBACKUP_KILLS", "3"))
TREES = int(os.environ.get("VBACKUP_TREES", "2"))
KILLED = 9


def chain(path: Path, count: int = 4) -> Tree:
    """Two disks: a full, and increments with data, zeros, and blocks that are partly zeros."""
    tree = Tree(path)
    a = State.of(SIZE, {n: (n + 1, n + 1) for n in range(8)})
    b = State.of(SIZE, {n: (n + 101, n + 101) for n in range(4)})
    last = tree.backup({"vda": a, "vdb": b})
    for n in range(1, count):
        a = a.changed({n: (0, 0), n + 1: (40 + n, 0), 15: (60 + n, 60 + n)})
        b = b.changed({n % 4: (150 + n, 150 + n)})
        last = tree.backup({"vda": a, "vdb": b}, {"vda": last, "vdb": last})
    return tree


def copied(tree: Tree, store: Store, **options: Any) -> Copied:
    request = CopyRequest(tree.uuid, **options)
    return copy.run(request, repository=tree.repository, store=store, reporter=Recorder(), stop=Stop())


@contextmanager
def viewed(store: Store, tmp_path: Path) -> Iterator[View]:
    with view.opened(store, tmp_path / "cache", reporter=Recorder(), stop=Stop()) as opened:
        yield opened


def pruned(store: Store, tmp_path: Path, uuid: str, **options: Any) -> CopiesPruned:
    given = {"rules": Rules(), **options}
    with viewed(store, tmp_path) as opened:
        return copy_prune.run(CopyPruneRequest(uuid, **given), known=opened.known, reporter=Recorder(), stop=Stop())


def fetched(store: Store, tmp_path: Path, path: Path) -> Repository:
    with viewed(store, tmp_path) as opened:
        fetch.run(FetchRequest(path), opened)
    return Repository.open(path)


def check(tree: Tree, store: Store, tmp_path: Path, *, by_qemu: bool = False) -> list[str]:
    """Every point there has what the disks contained, and lists and manifests that fit; returns their ids."""
    with viewed(store, tmp_path) as opened:
        there = list(opened.there[tree.uuid].points) if opened.there else []
        assert not (opened.there and opened.there[tree.uuid].unreadable)
    if not there:
        return []
    path = tmp_path / "checked"
    twin = object.__new__(Tree)
    twin.repository, twin.uuid, twin.states = fetched(store, tmp_path, path), tree.uuid, tree.states
    twin.check(by_qemu=by_qemu)
    assert twin.ids() == there
    shutil.rmtree(path)
    return there


def leftovers(store: Store) -> list[str]:
    """What is there of claims and unfinished copies."""
    keys = [each.key for each in store.list("")]
    return [key for key in keys if "/claim-" in key or f"/{UPLOAD}" in key]


def directory_store(tmp_path: Path) -> DirectoryStore:
    (tmp_path / "target").mkdir(exist_ok=True)
    return DirectoryStore(tmp_path / "target")


STORES: dict[str, Callable[[Path], Store]] = {"memory": lambda _: FakeStore(), "directory": directory_store}


@pytest.mark.parametrize("kind", STORES)
def test_points_go_as_they_are_and_come_back(tmp_path: Path, kind: str) -> None:
    tree, store = chain(tmp_path / "repo"), STORES[kind](tmp_path)
    done = copied(tree, store)
    assert [point.id for point in done.points] == tree.ids()
    assert {form for point in done.points for form in point.forms.values()} == {"as-it-is"}
    assert check(tree, store, tmp_path, by_qemu=True) == tree.ids()
    assert leftovers(store) == []
    for backup_id in tree.ids():
        assert b"".join(store.get(f"{tree.uuid}/{backup_id}/vda.qcow2")) == tree.image(backup_id).read_bytes()


def test_status_knows_what_was_copied_without_asking_the_target(tmp_path: Path) -> None:
    tree, store = chain(tmp_path / "repo"), FakeStore()
    copied(tree, store)
    store.calls.clear()
    found = of_targets(tree.repository.path / COPIES, {"offsite": store.name, "other": "s3://other"})
    assert {name: ledger.ids(tree.uuid) for name, ledger in found.items()} == {"offsite": frozenset(tree.ids())}
    assert store.calls == []


def test_what_is_there_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, store = chain(tmp_path / "repo"), FakeStore()
    copied(tree, store)
    last = tree.ids()[-1]
    state = tree.states[last]["vda"].changed({3: (9, 9)})
    new = tree.backup({"vda": state}, {"vda": last})
    read: list[Path] = []
    opened, checked = outgoing.opened, image_check.check
    monkeypatch.setattr(outgoing, "opened", lambda path: (read.append(path), opened(path))[1])
    monkeypatch.setattr(image_check, "check", lambda path, *rest: (read.append(path), checked(path, *rest))[1])
    store.calls.clear()
    assert [point.id for point in copied(tree, store).points] == [new]
    assert {path.parent.name for path in read} == {new}
    assert [call for call in store.calls if call[0] == "get"] == [("get", "vbackup.json")]
    read.clear()
    store.calls.clear()
    assert copied(tree, store).there == tuple(tree.ids())
    assert read == []
    assert len(store.calls) == 5  # marker: size and content; claim, list, and the claim's end


def test_what_lies_between_is_joined_and_the_first_is_a_full(tmp_path: Path) -> None:
    tree, store = chain(tmp_path / "repo", 5), FakeStore()
    ids = tree.ids()
    [first] = copied(replaced(tree, ids[:3]), store, since=tree.get(ids[2]).time).points
    assert (first.id, set(first.forms.values()), set(first.bases.values())) == (ids[2], {"full"}, {None})
    [second] = copied(tree, store, since=tree.get(ids[4]).time).points
    assert (second.id, set(second.forms.values()), set(second.bases.values())) == (ids[4], {"joined"}, {ids[2]})
    assert copied(tree, store).passed == (ids[0], ids[1], ids[3])
    assert check(tree, store, tmp_path, by_qemu=True) == [ids[2], ids[4]]
    # What is older than the newest there goes if it is asked for; the points there stay as they are.
    older = copied(tree, store, since=NOON).points
    assert [(point.id, point.forms["vda"]) for point in older] == [
        (ids[0], "as-it-is"),
        (ids[1], "as-it-is"),
        (ids[3], "as-it-is"),
    ]
    assert check(tree, store, tmp_path) == ids


def replaced(tree: Tree, ids: list[str]) -> Tree:
    """The tree as it was when it had only these backups."""

    class Earlier(Repository):
        def catalogue(self, uuid: str, *, with_chains: bool = True) -> Any:
            found = super().catalogue(uuid, with_chains=with_chains)
            return replace(found, history=found.history.without(set(tree.ids()) - set(ids)))

    twin = object.__new__(Tree)
    twin.repository = Earlier(tree.repository.path, tree.repository.id)
    twin.uuid, twin.states = tree.uuid, tree.states
    return twin


def test_full_every_limits_chains_so_that_old_ones_can_go(tmp_path: Path) -> None:
    tree, store = chain(tmp_path / "repo", 6), FakeStore()
    done = copied(tree, store, full_every=3)
    assert [point.forms["vda"] for point in done.points] == [*["as-it-is"] * 3, "full", *["as-it-is"] * 2]
    ids = tree.ids()
    result = pruned(store, tmp_path, tree.uuid, rules=Rules(last=1))
    assert [line.id for line in result.removed] == ids[:3]
    assert {line.id: line.reasons for line in result.lines if line.is_kept} == {
        ids[3]: (f"{ids[5]} depends on it",),
        ids[4]: (f"{ids[5]} depends on it",),
        ids[5]: ("last #1", "newest"),
    }
    assert result.freed_bytes > 0
    assert check(tree, store, tmp_path, by_qemu=True) == ids[3:]
    assert copied(tree, store).points == ()  # they were removed there, and do not go again
    assert not [each.key for each in store.list("") if ids[0] in each.key]


def test_merges_in_the_repository_send_nothing_again(tmp_path: Path) -> None:
    tree, store = chain(tmp_path / "repo", 5), FakeStore()
    copied(tree, store)
    ids = tree.ids()
    merge(tree, [ids[1], ids[2]])
    assert tree.chain(ids[3]) == [ids[3], ids[0]]
    assert copied(tree, store).points == ()
    state = tree.states[ids[4]]
    new = tree.backup({"vda": state["vda"].changed({9: (3, 3)}), "vdb": state["vdb"]}, {"vda": ids[4], "vdb": ids[4]})
    merge(tree, [ids[4]])
    [point] = copied(tree, store).points
    # The base at home was merged into it; the nearest that is at the target as well is taken.
    assert (point.id, point.forms["vda"], point.bases["vda"]) == (new, "as-it-is", ids[3])
    assert check(tree, store, tmp_path) == [*ids, new]


def merge(tree: Tree, remove: list[str]) -> None:
    with tree.repository.lock(tree.uuid):
        plan = consolidation.plan(tree.repository.catalogue(tree.uuid), remove, repository=tree.repository)
        consolidation.carry_out(plan, repository=tree.repository, reporter=Recorder(), stop=Stop())


@pytest.mark.parametrize("seed", range(TREES))
def test_random_lives_of_two_sides(tmp_path: Path, seed: int) -> None:
    """Backups, merges, copies and prunes in any order: what is at the target is always what the disks contained."""
    rng = random.Random(seed)
    tree, store = Tree(tmp_path / "repo"), FakeStore()
    now = {"vda": State.of(SIZE), "vdb": State.of(SIZE + 512)}
    for _ in range(14):
        what = rng.choice(("backup", "backup", "backup", "copy", "copy", "merge", "prune"))
        ids = tree.ids()
        if what == "backup" or not ids:
            more = BLOCK // 2 if rng.random() < 0.3 else 0
            now = {dev: random_changes(rng, state, 4, size_bytes=state.size_bytes + more) for dev, state in now.items()}
            base = ids[-1] if ids and rng.random() < 0.9 else None
            tree.backup(now, dict.fromkeys(now, base), has_lists=rng.random() < 0.8)
        elif what == "copy":
            since = tree.get(rng.choice(ids)).time if rng.random() < 0.5 else None
            copied(tree, store, since=since, full_every=rng.choice((None, 2, 3)))
            check(tree, store, tmp_path)
        elif what == "merge" and len(ids) > 2:
            merge(tree, rng.sample(ids[:-1], rng.randrange(1, 3)))
        elif what == "prune" and store.objects:
            pruned(store, tmp_path, tree.uuid, rules=Rules(last=rng.randrange(1, 4)))
            check(tree, store, tmp_path)
    copied(tree, store)
    assert tree.ids()[-1] in check(tree, store, tmp_path, by_qemu=True)
    assert leftovers(store) == []


def test_early_backups_without_lists(tmp_path: Path) -> None:
    tree, store = Tree(tmp_path / "repo"), FakeStore()
    state = State.of(SIZE, {1: (1, 1)})
    full = tree.backup({"vda": state}, has_lists=False)
    state = state.changed({2: (2, 2)})
    first = tree.backup({"vda": state}, {"vda": full}, has_lists=False)
    second = tree.backup({"vda": state.changed({3: (3, 3)})}, {"vda": first})
    copied(tree, store, since=tree.get(second).time)
    assert check(tree, store, tmp_path, by_qemu=True) == [second]
    copied(tree, store, since=NOON)
    assert check(tree, store, tmp_path, by_qemu=True) == [full, first, second]


# what is damaged, or another


def test_damaged_image_does_not_become_a_point(tmp_path: Path) -> None:
    tree, store = chain(tmp_path / "repo", 3), FakeStore()
    ids = tree.ids()
    path = tree.image(ids[1])
    good = path.read_bytes()
    path.write_bytes(good.replace(b"\x3d" * 512, b"\x3e" * 512, 1))
    with pytest.raises(ChainError, match="altered or is damaged"):
        copied(tree, store)
    assert check(tree, store, tmp_path) == [ids[0]]
    path.write_bytes(good)
    assert [point.id for point in copied(tree, store).points] == ids[1:]
    assert check(tree, store, tmp_path) == ids


def test_damaged_layer_does_not_become_part_of_another(tmp_path: Path) -> None:
    tree, store = chain(tmp_path / "repo", 3), FakeStore()
    ids = tree.ids()
    path = tree.image(ids[1], "vdb")
    path.write_bytes(path.read_bytes().replace(b"\x97" * 512, b"\x98" * 512, 1))
    with pytest.raises(ChainError):
        copied(tree, store, since=tree.get(ids[2]).time)
    assert check(tree, store, tmp_path) == []


def test_another_backup_under_an_id_is_refused(tmp_path: Path) -> None:
    tree, other, store = chain(tmp_path / "repo", 2), Tree(tmp_path / "other"), FakeStore()
    copied(tree, store)
    other.backup({"vda": State.of(SIZE, {1: (1, 1)}), "vdb": State.of(SIZE)})
    other.repository.ids = (*other.repository.ids, tree.repository.id)
    with pytest.raises(ChainError, match="another backup under the id"):
        copied(other, store)


def test_another_repository_needs_another_target(tmp_path: Path) -> None:
    tree, other, store = chain(tmp_path / "repo", 2), chain(tmp_path / "other", 2), FakeStore()
    copied(tree, store)
    with pytest.raises(StorageError, match="another repository"):
        copied(other, store)


def test_broken_points_are_skipped_and_the_others_go(tmp_path: Path) -> None:
    tree, store = chain(tmp_path / "repo", 3), FakeStore()
    ids = tree.ids()
    tree.image(ids[1]).unlink()
    done = copied(tree, store)
    assert [point.id for point in done.points] == [ids[0]]
    assert done.skipped.keys() == {ids[1], ids[2]}


# verify, restore, fetch


def test_verify_finds_damage_and_what_depends_on_it(tmp_path: Path) -> None:
    tree, store = chain(tmp_path / "repo", 3), FakeStore()
    copied(tree, store)
    ids = tree.ids()
    key = f"{tree.uuid}/{ids[1]}/vda.qcow2"
    data, modified = store.objects[key]
    store.objects[key] = (data[:-1] + b"\x01", modified)
    del store.objects[f"{tree.uuid}/{ids[2]}/domain.xml"]
    with viewed(store, tmp_path) as opened:
        found = copy_verify.run(CopyVerifyRequest(tree.uuid), opened)
        assert {one: len(reasons) for one, reasons in found.damage.items()} == {ids[1]: 1, ids[2]: 3}
        assert "is not what its manifest says" in found.damage[ids[1]][0]
        assert copy_verify.run(CopyVerifyRequest(tree.uuid, ids[0]), opened).damage == {}
        with pytest.raises(ChainError, match="No backup"):
            copy_verify.run(CopyVerifyRequest(tree.uuid, "20200101T000000Z-full"), opened)


def test_verify_of_a_sample_reads_other_objects_each_time(tmp_path: Path) -> None:
    tree, store = chain(tmp_path / "repo", 3), FakeStore()
    copied(tree, store)
    key = f"{tree.uuid}/{tree.ids()[0]}/vda.qcow2"
    with viewed(store, tmp_path) as opened:
        whole = copy_verify.run(CopyVerifyRequest(tree.uuid), opened)
        told = opened.reporter.told  # type: ignore[attr-defined]
        assert {dev: {seen[-1][0], seen[-1][1]} for dev, seen in told.items()} == {  # of disks alone, each to its end
            dev: {sum(len(data) for name, (data, _) in store.objects.items() if f"/{dev}." in name)}
            for dev in ("vda", "vdb")
        }
        assert copy_verify.run(CopyVerifyRequest(tree.uuid, sample_percent=100), opened) == whole
        seen = set()
        for _ in range(250):
            store.calls.clear()
            found = copy_verify.run(CopyVerifyRequest(tree.uuid, sample_percent=10), opened)
            read = {name for what, name in store.calls if what == "get"}
            assert found.objects == len(read) < whole.objects
            assert found.read_bytes >= whole.read_bytes * 0.1
            assert set(found.points) == {name.split("/")[1] for name in read}
            seen |= read
        assert len(seen) == whole.objects
        assert copy_verify.run(CopyVerifyRequest(tree.uuid, sample_percent=0.000001), opened).objects == 1
        data, modified = store.objects[key]
        store.objects[key] = (data[:-1] + b"\x01", modified)
        runs = [copy_verify.run(CopyVerifyRequest(tree.uuid, sample_percent=30), opened) for _ in range(60)]
        assert any(one.damage for one in runs)
        assert all(one.damage.keys() <= set(tree.ids()) for one in runs)


def test_restore_fetches_the_chain_of_the_disk_and_nothing_else(tmp_path: Path) -> None:
    tree, store = chain(tmp_path / "repo", 3), FakeStore()
    copied(tree, store)
    ids = tree.ids()
    with viewed(store, tmp_path) as opened:
        store.calls.clear()
        opened.bring(tree.uuid, Wanted(ids[1], disks=("vdb",)))
        read = {key.removeprefix(f"{tree.uuid}/") for what, key in store.calls if what == "get"}
        assert read == {
            *(f"{one}/vdb.{suffix}" for one in ids[:2] for suffix in ("qcow2", "blocks")),
            f"{ids[1]}/domain.xml",
        }
        twin = object.__new__(Tree)
        twin.repository, twin.uuid, twin.states = opened.repository, tree.uuid, tree.states
        opened.bring(tree.uuid, Wanted(ids[1]))
        twin.check_restore(ids[1], tmp_path / "out")
        run = opened.repository.path
    assert not run.exists()
    store.calls.clear()
    with viewed(store, tmp_path):
        assert [call for call in store.calls if call[0] == "get"] == [("get", "vbackup.json")]  # manifests are kept


@pytest.mark.parametrize("is_sealed", [False, True])
def test_disks_are_read_at_the_target_and_only_what_is_read_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_sealed: bool
) -> None:
    monkeypatch.setattr(parts, "SMALL_BYTES", 0)
    monkeypatch.setattr(parts, "PART_BYTES", BLOCK)
    identity = Identity(bytes(range(32)))
    keys = Keys((identity.recipient,), (identity,)) if is_sealed else Keys()
    tree, store = chain(tmp_path / "repo"), FakeStore()
    copy.run(
        CopyRequest(tree.uuid), repository=tree.repository, store=store, keys=keys, reporter=Recorder(), stop=Stop()
    )
    newest, recorder = tree.ids()[-1], Recorder()
    with view.opened(store, tmp_path / "cache", keys=keys, reporter=recorder, stop=Stop()) as opened:
        shown = opened.show(tree.uuid, Wanted())
        request = serve.ServeRequest(tree.uuid, tmp_path / "nbd", Wanted())
        with serve.served(request, repository=opened.repository, reporter=Recorder(), stop=Stop()):
            with NbdClient(NbdAddress("vda", path=tmp_path / "nbd")) as client:
                assert b"".join(bytes(data or b"") for _, _, data in client.read(15 * BLOCK, BLOCK))
            images = list(tree.repository.path.rglob("*.qcow2"))
            assert 0 < shown.fetched_bytes < sum(path.stat().st_size for path in images) * 3 // 4
            for dev in ("vda", "vdb"):
                raw, uri = tmp_path / f"{dev}.raw", serve.uri(tmp_path / "nbd", dev)
                subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", uri, raw], check=True)
                assert sha256(raw.read_bytes()).hexdigest() == tree.states[newest][dev].digest
        assert shown.fetched_bytes <= sum(path.stat().st_size for path in images)
        assert recorder.warnings == []
        # What is there in part is never taken for the whole.
        opened.bring(tree.uuid, Wanted())
        twin = object.__new__(Tree)
        twin.repository, twin.uuid, twin.states = opened.repository, tree.uuid, tree.states
        twin.check_restore(newest, tmp_path / "out")
    assert list((tmp_path / "cache").rglob("*.qcow2")) == []


def test_failed_show_leaves_nothing_that_another_takes_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "SMALL_BYTES", 0)
    tree, store = chain(tmp_path / "repo", count=3), FakeStore()
    copied(tree, store)
    newest = tree.ids()[-1]
    missing = f"{tree.uuid}/{newest}/vdb.qcow2"
    with viewed(store, tmp_path) as opened:
        kept = store.objects.pop(missing)
        with pytest.raises(ChainError, match="is missing"):
            opened.show(tree.uuid, Wanted())
        assert opened.repository.served == {}
        assert [path.name for path in opened.repository.path.rglob("vd*")] == []
        store.objects[missing] = kept
        asked: list[int] = []
        monkeypatch.setattr(readers, "allow_files", asked.append)
        opened.show(tree.uuid, Wanted())
        assert len(opened.repository.served) == 6
        assert asked == [18]  # of each image its file, a connection and a lock
        request = serve.ServeRequest(tree.uuid, tmp_path / "nbd", Wanted())
        with serve.served(request, repository=opened.repository, reporter=Recorder(), stop=Stop()):
            assert 18 in asked[1:]
            raw = tmp_path / "vda.raw"
            uri = serve.uri(tmp_path / "nbd", "vda")
            subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", uri, raw], check=True)
            assert sha256(raw.read_bytes()).hexdigest() == tree.states[newest]["vda"].digest
        # A restore needs more than the parts that are there.
        [image, *_] = opened.repository.served
        layer = flatten.Layer(image, SIZE, opened.repository.served[image])
        with pytest.raises(StorageError, match="only a part was fetched"):
            flatten.flatten(
                [layer],
                tmp_path / "out.raw",
                ImageFormat.RAW,
                reporter=Recorder(),
                stop=Stop(),
                progress=lambda percent: None,
            )
        assert not (tmp_path / "out.raw").exists()


def test_read_that_the_target_does_not_answer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SMALL_BYTES", 0)
    monkeypatch.setattr(parts, "PART_BYTES", BLOCK)
    tree, store, recorder = chain(tmp_path / "repo", count=2), FakeStore(), Recorder()
    copied(tree, store)
    with view.opened(store, tmp_path / "cache", reporter=recorder, stop=Stop()) as opened:
        opened.show(tree.uuid, Wanted())
        request = serve.ServeRequest(tree.uuid, tmp_path / "nbd", Wanted())
        with serve.served(request, repository=opened.repository, reporter=Recorder(), stop=Stop()):
            content, store.objects = store.objects, {}
            with (
                pytest.raises((StorageError, MalformedError)),
                NbdClient(NbdAddress("vda", path=tmp_path / "nbd")) as client,
            ):
                list(client.read(0, SIZE))
            store.objects = content
            with NbdClient(NbdAddress("vda", path=tmp_path / "nbd")) as client:
                list(client.read(0, SIZE))
    assert all("is missing at memory" in text for text in recorder.warnings)
    assert len(recorder.warnings) in (1, 2)


def test_damage_ends_a_restore_before_it_begins(tmp_path: Path) -> None:
    tree, store = chain(tmp_path / "repo", 2), FakeStore()
    copied(tree, store)
    key = f"{tree.uuid}/{tree.ids()[0]}/vda.qcow2"
    store.objects[key] = (store.objects[key][0] + b"more", NOON)
    with viewed(store, tmp_path) as opened, pytest.raises(ChainError, match="damaged"):
        opened.bring(tree.uuid, Wanted())


def test_damaged_manifest_is_a_broken_backup(tmp_path: Path) -> None:
    tree, store = chain(tmp_path / "repo", 3), FakeStore()
    copied(tree, store)
    ids = tree.ids()
    key = f"{tree.uuid}/{ids[1]}/{MANIFEST}"
    store.objects[key] = (b"{}", NOON)
    with viewed(store, tmp_path) as opened:
        assert [one.id for one in opened.repository.catalogue(tree.uuid).unreadable] == [ids[1]]
    result = pruned(store, tmp_path, tree.uuid, rules=Rules(last=1))
    assert result.removed == ()  # nobody knows what it depends on
    # A copy makes nothing depend on it.
    state = tree.states[ids[2]]
    tree.backup(state, dict.fromkeys(state, ids[2]))
    [point] = copied(tree, store).points
    assert point.forms["vda"] == "joined" or point.bases["vda"] != ids[1]


def test_fetch_goes_on_where_it_was_ended(tmp_path: Path) -> None:
    tree, store = chain(tmp_path / "repo", 3), FakeStore()
    copied(tree, store)
    gets = 0

    def fail(what: str, key: str) -> None:
        nonlocal gets
        gets += what == "get" and "qcow2" in key
        if gets == 4:
            raise StorageError("the line is dead")

    store.before = fail
    with pytest.raises(StorageError, match="dead"):
        fetched(store, tmp_path, tmp_path / "new")
    store.before = lambda what, key: None
    first = Repository.open(tmp_path / "new").catalogue(tree.uuid)
    assert [one.id for one in first.history.backups] == tree.ids()[:1]
    store.calls.clear()
    repository = fetched(store, tmp_path, tmp_path / "new")
    assert not [key for what, key in store.calls if what == "get" and tree.ids()[0] in key]
    assert [one.id for one in repository.catalogue(tree.uuid).history.backups] == tree.ids()
    assert repository.id != tree.repository.id
    assert copy.run(
        CopyRequest(tree.uuid), repository=repository, store=store, reporter=Recorder(), stop=Stop()
    ).there == tuple(tree.ids())


def test_fetch_into_another_repository_is_refused(tmp_path: Path) -> None:
    tree, store = chain(tmp_path / "repo", 2), FakeStore()
    copied(tree, store)
    Repository.create(tmp_path / "other")
    with pytest.raises(StorageError, match="another repository"):
        fetched(store, tmp_path, tmp_path / "other")


def test_object_that_a_killed_run_has_stored_late_is_no_part_of_the_point(tmp_path: Path) -> None:
    """A request can be under way when its process is killed: what it stores then has another content."""
    tree, store = chain(tmp_path / "repo", 1), FakeStore()
    late = [f"{tree.uuid}/{tree.ids()[0]}/vda.qcow2"]

    def arrive(what: str, key: str) -> None:
        if what == "put_new" and key in late:
            late.remove(key)
            assert FakeStore.put_new(store, key, io.BytesIO(b"other"), 5)

    store.before = arrive
    copied(tree, store)
    assert not late
    assert check(tree, store, tmp_path) == tree.ids()


def test_manifest_is_known_here_before_it_is_there(tmp_path: Path) -> None:
    """Who cannot read it, and is killed in between, would have to send a full next."""
    tree, store = chain(tmp_path / "repo", 1), FakeStore()
    known = []
    store.before = lambda what, key: known.extend(
        path.stem
        for path in tree.repository.path.glob("copies/*/*/*.json")
        if (what, MANIFEST) == ("put_new", key[-13:])
    )
    copied(tree, store)
    assert known == tree.ids()


def test_object_that_lost_its_content_is_sent_again(tmp_path: Path) -> None:
    tree, store = chain(tmp_path / "repo", 1), FakeStore()

    def fail(what: str, key: str) -> None:
        if what == "put_new" and key.endswith(MANIFEST):
            raise StorageError("the line is dead")

    store.before = fail
    with pytest.raises(StorageError, match="dead"):
        copied(tree, store)
    store.before = lambda what, key: None
    key = f"{tree.uuid}/{tree.ids()[0]}/vda.qcow2"
    store.objects[key] = (b"", store.objects[key][1])
    copied(tree, store)
    assert check(tree, store, tmp_path) == tree.ids()


# prune


def test_prune_of_what_is_asked_for(tmp_path: Path) -> None:
    tree, store = chain(tmp_path / "repo", 3), FakeStore()
    copied(tree, store)
    ids = tree.ids()
    for one, match in ((ids[1], "depends on it"), (ids[2], "newest"), ("20200101T000000Z-full", "No backup")):
        with pytest.raises((NeededError, ChainError), match=match):
            pruned(store, tmp_path, tree.uuid, remove=(one,))
    assert check(tree, store, tmp_path) == ids


def test_lock_that_forbids_is_a_state(tmp_path: Path) -> None:
    tree, store = chain(tmp_path / "repo", 6), FakeStore()
    copied(tree, store, full_every=3)
    ids = tree.ids()
    locked = f"{tree.uuid}/{ids[1]}/{MANIFEST}"
    delete = store.delete

    def keeping(key: str) -> Deletion:
        return Deletion.KEPT if key == locked else delete(key)

    store.delete = keeping  # type: ignore[method-assign]
    result = pruned(store, tmp_path, tree.uuid, rules=Rules(last=1))
    assert [line.id for line in result.removed] == [ids[2]]
    assert [(line.id, line.is_locked) for line in result.lines[:2]] == [(ids[0], False), (ids[1], True)]
    assert check(tree, store, tmp_path) == [*ids[:2], *ids[3:]]
    store.days = 30
    result = pruned(store, tmp_path, tree.uuid, rules=Rules(last=1))
    assert result.removed == ()
    assert copied(tree, store).points == ()
    assert check(tree, store, tmp_path) == [*ids[:2], *ids[3:]]
    store.days = None
    store.delete = delete  # type: ignore[method-assign]
    assert [line.id for line in pruned(store, tmp_path, tree.uuid, rules=Rules(last=1)).removed] == ids[:2]
    assert {each.key.split("/")[-1].split("-")[0] for each in store.list("")} <= {
        *("vbackup.json", "domain.xml", "manifest.json"),
        *(f"vd{n}.{suffix}" for n in "ab" for suffix in ("qcow2", "blocks")),
    }


# several at once


def test_two_processes_of_one_repository_take_turns(tmp_path: Path) -> None:
    tree, store = chain(tmp_path / "repo"), FakeStore()
    errors: list[VbackupError] = []

    def second(what: str, key: str) -> None:
        store.before = lambda what, key: None
        thread = threading.Thread(target=lambda: errors.append(busy()))
        thread.start()
        thread.join()

    def busy() -> VbackupError:
        with pytest.raises(BusyError) as caught:
            copied(tree, store)
        return caught.value

    store.before = lambda what, key: second(what, key) if key.endswith("vda.qcow2") else None
    copied(tree, store)
    assert len(errors) == 1
    assert check(tree, store, tmp_path) == tree.ids()


def test_two_machines_take_turns_and_one_that_is_dead_is_taken_over(tmp_path: Path) -> None:
    tree, store = chain(tmp_path / "repo"), FakeStore()
    shutil.copytree(tmp_path / "repo", tmp_path / "twin")
    twin = object.__new__(Tree)
    twin.repository, twin.uuid, twin.states = Repository.open(tmp_path / "twin"), tree.uuid, tree.states
    refused = []

    def dead(what: str, key: str) -> None:
        raise StorageError("the machine is gone")

    def second(what: str, key: str) -> None:
        if key.endswith("vda.qcow2") and what == "put_new":
            store.before = lambda what, key: None
            with pytest.raises(BusyError, match="take-over"):
                copied(twin, store)
            refused.append(key)
            store.before = dead
            raise StorageError("the machine is gone")

    store.before = second
    with pytest.raises(StorageError, match="gone"):
        copied(tree, store)
    store.before = lambda what, key: None
    assert refused
    with pytest.raises(BusyError):
        copied(twin, store)
    assert [point.id for point in copied(twin, store, take_over=True).points] == tree.ids()
    assert copied(tree, store).there == tuple(tree.ids())
    assert check(tree, store, tmp_path) == tree.ids()
    assert leftovers(store) == []


def test_several_machines_at_once_bring_every_point_once(tmp_path: Path) -> None:
    tree, store = chain(tmp_path / "repo", 5), directory_store(tmp_path)
    ids = tree.ids()
    twins = []
    for number in range(3):
        shutil.copytree(tmp_path / "repo", tmp_path / f"twin{number}")
        twins.append(object.__new__(Tree))
        twins[-1].repository = Repository.open(tmp_path / f"twin{number}")
        twins[-1].uuid, twins[-1].states = tree.uuid, tree.states

    def until_done(twin: Tree) -> list[str]:
        brought: list[str] = []
        while True:
            with suppress(BusyError):
                done = copied(twin, store, since=tree.get(ids[1]).time, full_every=2)
                brought += [point.id for point in done.points]
                if not done.points:
                    return brought

    with ThreadPoolExecutor(max_workers=3) as pool:
        assert sorted(one for brought in pool.map(until_done, twins) for one in brought) == ids[1:]
    assert check(tree, store, tmp_path) == ids[1:]
    assert leftovers(store) == []


def test_signal_ends_a_copy_which_goes_on(tmp_path: Path) -> None:
    tree, store, stop = chain(tmp_path / "repo", 3), FakeStore(), Stop()
    store.before = lambda what, key: stop.request() if key.endswith(f"{tree.ids()[1]}/vda.qcow2") else None
    with pytest.raises(InterruptedBySignalError, match="the same command goes on"):
        copy.run(CopyRequest(tree.uuid), repository=tree.repository, store=store, reporter=Recorder(), stop=stop)
    assert check(tree, store, tmp_path) == tree.ids()[:1]
    store.before = lambda what, key: None
    assert [point.id for point in copied(tree, store).points] == tree.ids()[1:]
    assert check(tree, store, tmp_path) == tree.ids()


# kills


class Killing:
    """A store that ends the process before its n-th call, or in the middle of it."""

    def __init__(self, inner: Store, count: int, *, in_the_middle: bool) -> None:
        self._inner, self._left, self._in_the_middle = inner, count, in_the_middle
        self._lock = threading.Lock()

    def _call(self, source: Source | None = None) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                if self._in_the_middle and source is not None:
                    source.read(100)
                os._exit(KILLED)

    @property
    def name(self) -> str:
        return self._inner.name

    def put_new(self, key: str, source: Source, size_bytes: int) -> bool:
        self._call(source)
        return self._inner.put_new(key, source, size_bytes)

    def get(self, key: str, offset: int = 0, length: int | None = None, *, mark: str | None = None) -> Iterator[bytes]:
        self._call()
        return self._inner.get(key, offset, length, mark=mark)

    def size(self, key: str) -> int | None:
        return self._inner.size(key)

    def look(self, key: str) -> Seen | None:
        return self._inner.look(key)

    def list(self, prefix: str) -> Iterator[Any]:
        self._call()
        return self._inner.list(prefix)

    def delete(self, key: str) -> Deletion:
        self._call()
        return self._inner.delete(key)

    def lock_days(self) -> int | None:
        return None

    def close(self) -> None:
        pass


def killed(work: Callable[[], object]) -> bool:
    """Run the work in a child; return False if it ended by itself."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in {0, KILLED}
    return status == KILLED


def test_copy_killed_at_every_object_goes_on(tmp_path: Path) -> None:
    """Points as they are, a full and joined ones; each kill is at another call of the store, until none is left."""
    tree = chain(tmp_path / "repo", 5)
    ids = tree.ids()
    count, kills = 1, 0
    while True:
        shutil.rmtree(tmp_path / "target", ignore_errors=True)
        shutil.rmtree(tmp_path / "repo" / "copies", ignore_errors=True)
        store = directory_store(tmp_path)
        copied(replaced(tree, ids[:2]), store, since=tree.get(ids[1]).time)

        def work(store: Store = store, count: int = count) -> None:
            killing = Killing(store, count, in_the_middle=count % 2 == 0)
            copied(tree, killing, since=tree.get(ids[3]).time, full_every=2)

        if not killed(work):
            break
        kills += 1
        whole = check(tree, store, tmp_path)
        assert set(whole) <= {ids[1], ids[3], ids[4]}
        copied(tree, store, since=tree.get(ids[3]).time, full_every=2)
        assert check(tree, store, tmp_path) == [ids[1], ids[3], ids[4]]
        assert leftovers(store) == []
        assert not list((tmp_path / "repo" / "copies").glob("*/*/*.partial"))
        count += EVERY
    assert kills > 15 / EVERY


def test_what_an_interrupted_copy_has_sent_is_not_sent_again(tmp_path: Path) -> None:
    tree, store = chain(tmp_path / "repo", 3), FakeStore()
    ids = tree.ids()

    def fail(what: str, key: str) -> None:
        if what == "put_new" and key.endswith(f"{ids[2]}/{MANIFEST}"):
            raise StorageError("the line is dead")

    store.before = fail
    with pytest.raises(StorageError, match="dead"):
        copied(tree, store, since=tree.get(ids[2]).time)
    store.before = lambda what, key: None
    store.calls.clear()
    [point] = copied(tree, store, since=tree.get(ids[2]).time).points
    assert (point.objects, point.found_objects) == (0, 5)
    assert [key.rpartition("/")[2] for what, key in store.calls if what == "put_new"][1:] == [MANIFEST]
    assert check(tree, store, tmp_path) == [ids[2]]


def test_a_merge_in_between_begins_the_point_again(tmp_path: Path) -> None:
    tree, store = chain(tmp_path / "repo", 4), FakeStore()
    ids = tree.ids()

    def fail(what: str, key: str) -> None:
        if what == "put_new" and key.endswith(f"{ids[3]}/{MANIFEST}"):
            raise StorageError("the line is dead")

    store.before = fail
    with pytest.raises(StorageError, match="dead"):
        copied(tree, store, since=tree.get(ids[3]).time)
    store.before = lambda what, key: None
    merge(tree, [ids[1], ids[2]])
    [point] = copied(tree, store, since=tree.get(ids[3]).time).points
    assert (point.objects, point.found_objects) == (5, 0)
    assert check(tree, store, tmp_path) == [ids[3]]


def test_a_merge_while_others_are_copied_changes_the_plan_of_the_rest(tmp_path: Path) -> None:
    tree, store = chain(tmp_path / "repo", 5), FakeStore()
    ids = tree.ids()

    def merging(what: str, key: str) -> None:
        if what == "put_new" and key.endswith(f"{ids[0]}/{MANIFEST}"):
            store.before = lambda what, key: None
            merge(tree, [ids[1]])

    store.before = merging
    done = copied(tree, store)
    assert [point.id for point in done.points] == [ids[0], *ids[2:]]
    assert (done.there, done.skipped) == ((), {})
    assert check(tree, store, tmp_path) == [ids[0], *ids[2:]]


def test_prune_killed_at_every_object_goes_on(tmp_path: Path) -> None:
    tree = chain(tmp_path / "repo", 4)
    ids = tree.ids()
    store = directory_store(tmp_path)
    copied(tree, store, full_every=2)
    shutil.copytree(tmp_path / "target", tmp_path / "before")
    count = kills = 0
    while True:
        count += EVERY
        shutil.rmtree(tmp_path / "target")
        shutil.copytree(tmp_path / "before", tmp_path / "target")
        store.close()  # it has the former directory open

        def work(count: int = count) -> None:
            killing = Killing(store, count, in_the_middle=False)
            pruned(killing, tmp_path, tree.uuid, rules=Rules(last=1))

        if not killed(work):
            break
        kills += 1
        assert set(check(tree, store, tmp_path)) >= set(ids[2:])
        pruned(store, tmp_path, tree.uuid, rules=Rules(last=1))
        assert check(tree, store, tmp_path) == ids[2:]
        assert leftovers(store) == []
        assert {each.key.split("/")[1] for each in store.list(f"{tree.uuid}/")} == set(ids[2:])
    assert kills > 8 / EVERY
