"""Trees of backups, pruned in random order: every backup that is kept is compared with what it contained.

Through operations.consolidation, these are the tests of images.merge, images.joining and repository.merged_list, which
need a storage daemon and real images.

VBACKUP_TREES is the number of trees, VBACKUP_SEED where they begin.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from pathlib import Path

import pytest

from tests.trees import State, Tree, random_changes
from tests.unit.builders import Recorder
from vbackup.errors import ChainError, NoSpaceError, StorageError
from vbackup.model import Compression
from vbackup.operations import consolidation
from vbackup.operations.consolidation import ConsolidateRequest
from vbackup.qemu.qcow2_layer import Qcow2Layer
from vbackup.repository import readers
from vbackup.repository.merging import Place, Way
from vbackup.stop import Stop

TREES = int(os.environ.get("VBACKUP_TREES", "2"))
SEED = int(os.environ.get("VBACKUP_SEED", "1"))
MIB = 1024 * 1024


def prune(one: Tree, remove: list[str], way: Way | None = None) -> consolidation.Done:
    with one.repository.lock(one.uuid):
        plan = consolidation.plan(one.repository.catalogue(one.uuid), remove, repository=one.repository, way=way)
        return consolidation.carry_out(plan, repository=one.repository, reporter=Recorder(), stop=Stop())


def grown(rng: random.Random, path: Path) -> Tree:
    """Fulls, increments and differentials, disks that come, go and grow, in and out of compression."""
    one = Tree(path)
    now: dict[str, State] = {}
    newest: dict[str, str] = {}
    full: dict[str, str] = {}
    for _ in range(rng.randrange(5, 9)):
        devs = [dev for dev in ("vda", "vdb", "vdc") if rng.random() < 0.75] or ["vda"]
        bases: dict[str, str | None] = {}
        for dev in devs:
            size = rng.choice((MIB, MIB + 512, 2 * MIB - 4096))
            state = now.get(dev) or State.of(size, {n: (n + 1, n + 1) for n in range(rng.randrange(14))})
            bigger = state.size_bytes + rng.choice((0, 0, 0, 65536, 70144)) if dev in newest else None
            now[dev] = random_changes(rng, state, rng.randrange(5), size_bytes=bigger)
            kind = rng.random()
            bases[dev] = None if dev not in newest or kind < 0.15 else full[dev] if kind < 0.4 else newest[dev]
        compression = Compression.ZSTD if rng.random() < 0.4 else Compression.NONE
        made = one.backup({dev: now[dev] for dev in devs}, bases, compression=compression, has_lists=rng.random() < 0.9)
        for dev in devs:
            newest[dev] = made
            if bases[dev] is None:
                full[dev] = made
    return one


@pytest.mark.parametrize("seed", range(SEED, SEED + TREES))
def test_random_tree_pruned_in_random_order(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    one = grown(rng, tmp_path / "repository")
    one.check()
    while len(one.ids()) > 1:
        ids = one.ids()
        remove = rng.sample(ids[:-1], rng.randrange(1, 1 + min(3, len(ids) - 1)))
        way = rng.choice((Way.AUTO, Way.AUTO, Way.COPY))
        done = prune(one, remove, way)
        assert set(done.removed) == set(remove), (seed, done)
        assert one.ids() == [each for each in ids if each not in remove]
        one.check(by_qemu=rng.random() < 0.3)
    one.check()


def simple(path: Path, *, count: int = 4, compression: Compression = Compression.NONE) -> tuple[Tree, list[str]]:
    one = Tree(path)
    state = State.of(MIB, {n: (n + 1, n + 1) for n in range(12)})
    ids = [one.backup({"vda": state}, compression=compression)]
    for number in range(1, count):
        state = state.changed({number: (200 + number,) * 2, number + 4: (number, 9)})
        ids.append(one.backup({"vda": state}, {"vda": ids[-1]}, compression=compression))
    return one, ids


@pytest.mark.parametrize("way", [Way.IN_PLACE, Way.COPY])
def test_full_for_ever(tmp_path: Path, way: Way) -> None:
    """The oldest goes every day: the heir is a full then, and no image grows."""
    one, ids = simple(tmp_path / "repository")
    for oldest, heir in zip(ids, ids[1:]):
        done = prune(one, [oldest], way)
        assert done == consolidation.Done((oldest,), {}, (heir,))
        backup = one.get(heir)
        image = backup.image("vda")
        assert image is not None
        assert (backup.level.value, backup.parent, image.base, image.level.value) == ("full", None, None, "full")
        assert image.reason == f"merged with {oldest}"
        assert one.chain(ids[-1])[-1] == heir
        one.check()


def test_compressed_images_stay_compressed(tmp_path: Path) -> None:
    one, ids = simple(tmp_path / "repository", compression=Compression.ZSTD)
    prune(one, ids[:3])
    one.check()
    with Qcow2Layer(one.image(ids[3])) as image:
        kinds = [extent.compressed_bytes is not None for extent in image.extents(0) if extent.offset is not None]
    halves = 3  # blocks of two halves: qemu-io wrote them without compression, and the merge compresses them
    assert all(kinds)
    assert len(kinds) > halves
    result = subprocess.run(["qemu-img", "check", str(one.image(ids[3]))], capture_output=True, check=False)
    assert result.returncode == 0, result.stdout


def test_reader_in_the_middle_of_a_merge_keeps_its_bytes(tmp_path: Path) -> None:
    """Whoever has the chain open reads the old files to the end, although they have no names any more."""
    one, ids = simple(tmp_path / "repository")
    expected = one.states[ids[2]]["vda"].digest
    socket = tmp_path / "nbd"
    with subprocess.Popen(
        ["qemu-nbd", "-r", "-f", "qcow2", "-k", str(socket), "-t", str(one.image(ids[2]))], stderr=subprocess.PIPE
    ) as server:
        try:
            for _ in range(200):
                if socket.exists():
                    break
                subprocess.run(["sleep", "0.05"], check=True)
            done = prune(one, ids[:2], Way.COPY)
            assert set(done.removed) == set(ids[:2]), done
            out = tmp_path / "read"
            subprocess.run(
                ["qemu-img", "convert", "-f", "raw", "-O", "raw", f"nbd+unix:///?socket={socket}", str(out)], check=True
            )
            assert hashlib.sha256(out.read_bytes()).hexdigest() == expected
        finally:
            server.terminate()
    one.check()


def test_image_that_another_process_has_open_is_not_written_in_place(tmp_path: Path) -> None:
    one, ids = simple(tmp_path / "repository")
    socket = tmp_path / "nbd"
    with subprocess.Popen(
        ["qemu-nbd", "-r", "-f", "qcow2", "-k", str(socket), "-t", str(one.image(ids[0]))], stderr=subprocess.PIPE
    ) as server:
        try:
            for _ in range(200):
                if socket.exists():
                    break
                subprocess.run(["sleep", "0.05"], check=True)
            done = prune(one, [ids[0]], Way.IN_PLACE)
        finally:
            server.terminate()
    assert done.removed == ()
    assert "is open in another process" in done.kept[ids[0]]
    assert one.ids() == ids
    one.check()


def test_backup_that_is_read_is_kept(tmp_path: Path) -> None:
    one, ids = simple(tmp_path / "repository")
    with readers.reading([one.directory / ids[1]]):
        done = prune(one, ids[:2])
        assert done.removed == ()
        assert "in use" in done.kept[ids[1]]
        assert done.kept[ids[0]] == f"{ids[1]} depends on it"
    assert one.ids() == ids
    one.check()


@pytest.mark.parametrize("way", [Way.IN_PLACE, Way.COPY])
@pytest.mark.parametrize("what", ["data", "table", "list", "header", "swapped"])
def test_damage_before_a_merge_is_found_by_it(tmp_path: Path, what: str, way: Way) -> None:
    one, ids = simple(tmp_path / "repository")
    path = one.image(ids[1])
    damaged = bytearray(path.read_bytes())
    if what == "list":
        path = path.with_suffix(".blocks")
        damaged = bytearray(path.read_bytes())
        damaged[-40] ^= 1
    elif what == "header":
        damaged[30] ^= 1
    elif what == "table":
        damaged[int.from_bytes(damaged[40:48], "big") + 5] ^= 1  # L1
    elif what == "swapped":
        damaged = bytearray(one.image(ids[2]).read_bytes())
    else:
        damaged[damaged.index(bytes([201]) * 512) + 5] ^= 1
    path.write_bytes(damaged)
    before = {each: each.read_bytes() for each in one.directory.rglob("*") if each.is_file()}
    with pytest.raises(ChainError) as caught:
        prune(one, [ids[0]], way)
    assert caught.value.status == 6
    after = {each: each.read_bytes() for each in one.directory.rglob("*") if each.is_file()}
    assert after == before


def test_what_is_refused(tmp_path: Path) -> None:
    one, ids = simple(tmp_path / "repository")
    (one.directory / ids[0] / "protected").touch()
    with pytest.raises(ChainError, match="is protected"):
        prune(one, [ids[0]])
    with pytest.raises(ChainError, match="No backup"):
        prune(one, ["20200101T000000Z-full"])
    with pytest.raises(StorageError, match="no reflinks"):
        prune(one, [ids[1]], Way.REFLINK)
    (one.directory / ids[0] / "protected").unlink()
    done = prune(one, ids[:2], Way.NEVER)
    assert done.removed == ()
    assert done.kept[ids[1]] == f"{ids[2]} depends on it"
    one.check()


def test_no_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, ids = simple(tmp_path / "repository")
    needed = sum(image.file_size_bytes for each in ids[1:2] for image in one.get(each).disks) + MIB
    monkeypatch.setattr(consolidation, "place", lambda _directory: Place(False, True, needed))
    with pytest.raises(NoSpaceError, match="--consolidate in-place fits"):
        prune(one, [ids[0]], Way.COPY)
    assert prune(one, [ids[0]], Way.AUTO).removed == (ids[0],)
    one.check()


def test_synthetic_full_beside_the_chain(tmp_path: Path) -> None:
    one, ids = simple(tmp_path / "repository", count=5)
    request = ConsolidateRequest(one.uuid, backup_id=ids[2])
    done = consolidation.run(request, repository=one.repository, reporter=Recorder(), stop=Stop())
    assert done.merged == (ids[2],)
    assert one.ids() == ids
    assert one.chain(ids[2]) == [ids[2]]
    assert one.chain(ids[4]) == [ids[4], ids[3], ids[2]]
    assert one.chain(ids[1]) == [ids[1], ids[0]]
    one.check()


def test_chains_are_cut_to_a_length(tmp_path: Path) -> None:
    one, ids = simple(tmp_path / "repository", count=6)
    request = ConsolidateRequest(one.uuid, max_chain=2)
    done = consolidation.run(request, repository=one.repository, reporter=Recorder(), stop=Stop())
    assert set(done.merged) == {ids[2], ids[4]}
    assert max(len(one.chain(each)) for each in ids) == 2
    one.check()
    again = consolidation.run(request, repository=one.repository, reporter=Recorder(), stop=Stop())
    assert again.merged == ()
