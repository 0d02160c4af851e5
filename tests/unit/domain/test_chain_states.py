"""The files of a chain, as a process has them open."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fake_qemu import FakeQemu
from tests.unit import builders
from vbackup.domain import chain_states, file_contents
from vbackup.layers import TOO_NEW, FileState
from vbackup.model import DiskNode


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """An overlay and its backing file, written long ago."""
    paths = tmp_path / "top", tmp_path / "base"
    for path in paths:
        path.write_bytes(b"x" * 10)
        os.utime(path, ns=(10, 10))
    return paths


def node(*paths: Path | str, data_file: str | None = None) -> DiskNode:
    layers = [
        builders.layer(node_name=f"node-{number}", filename=str(path), data_file=data_file)
        for number, path in enumerate(paths)
    ]
    return builders.node(*layers)


def opened(*paths: Path) -> set[tuple[int, int]]:
    return {(path.stat().st_dev, path.stat().st_ino) for path in paths}


def test_open_files_are_proven_by_what_stat_says(files: tuple[Path, Path]) -> None:
    time.sleep(2 * file_contents.TICK_NS / 1e9)
    chain = chain_states.of_this_host(node(*files), mark="m", open_files=opened(*files))
    assert chain.device_mark == "m"
    assert chain.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    for layer, path in zip(chain.layers, files):
        status = path.stat()
        assert layer.file == FileState(
            str(path),
            status.st_dev,
            status.st_ino,
            size_bytes=status.st_size,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=status.st_ctime_ns,
        )


def test_ctime_that_a_further_change_could_leave_too_is_none(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: files[1].stat().st_ctime_ns + 1)
    chain = chain_states.of_this_host(node(*files), mark=None, open_files=opened(*files))
    assert [(layer.file.is_proven, layer.file.ctime_ns) for layer in chain.layers] == [(True, TOO_NEW)] * 2


def test_file_that_was_replaced_under_its_name_is_not_proven(files: tuple[Path, Path]) -> None:
    before = opened(*files)
    other = files[1].with_name("other")
    other.write_bytes(b"y")
    os.utime(other, ns=(10, 10))
    other.replace(files[1])
    chain = chain_states.of_this_host(node(*files), mark=None, open_files=before)
    assert [layer.file.is_proven for layer in chain.layers] == [True, False]
    assert chain.layers[1].file.path == str(files[1])


def test_without_the_list_of_open_files_only_the_active_image_is_proven(files: tuple[Path, Path]) -> None:
    chain = chain_states.of_this_host(node(*files, data_file="data"), mark=None, open_files=None)
    assert [layer.file.is_proven for layer in chain.layers] == [True, False]
    assert [layer.data_file for layer in chain.layers] == [FileState("data")] * 2


def test_file_that_is_just_being_written_is_not_proven(files: tuple[Path, Path]) -> None:
    """A second write in the same tick of the clock would leave no trace."""
    for path in files:
        os.utime(path, ns=(2**62, 2**62))  # the clock was set back since: as good as now
    chain = chain_states.of_this_host(node(*files), mark=None, open_files=opened(*files))
    assert [layer.file.is_proven for layer in chain.layers] == [True, False]


@pytest.mark.parametrize(("fraction_ns", "is_proven"), [(0, False), (1, True)])
def test_where_times_have_whole_seconds_a_second_write_leaves_no_trace_for_longer(
    files: tuple[Path, Path], fraction_ns: int, *, is_proven: bool
) -> None:
    """As on ext3, on ext4 with small inodes, and on vfat, whose seconds are even ones."""
    second = time.time_ns() // 1_000_000_000 - 1
    os.utime(files[1], ns=(0, second * 1_000_000_000 + fraction_ns))
    chain = chain_states.of_this_host(node(*files), mark=None, open_files=opened(*files))
    assert chain.layers[1].file.is_proven == is_proven


def test_what_is_no_regular_file_is_not_proven(files: tuple[Path, Path], tmp_path: Path) -> None:
    chain = chain_states.of_this_host(
        node(files[0], tmp_path, "/no/such", "nbd://user:secret@host/x"), mark=None, open_files=opened(files[0])
    )
    assert [layer.file for layer in chain.layers[1:]] == [
        FileState(str(tmp_path)),
        FileState("/no/such"),
        FileState("nbd://host/x"),
    ]


def test_options_of_a_network_image_are_not_written_down() -> None:
    (layer,) = chain_states.of_other_host(node('json:{"driver": "https", "cookie": "secret"}'), mark="m").layers
    assert layer.file.path.startswith("image ")
    assert "secret" not in str(layer)


@pytest.mark.parametrize(
    ("filename", "shown"),
    [
        ("https://user:secret@host/disk.qcow2", "https://host/disk.qcow2"),
        ("https://host/disk.qcow2?signature=secret", "https://host/disk.qcow2?..."),
        ("rbd:pool/disk:id=backup:key=secret", "rbd:pool/disk:..."),
    ],
)
def test_what_gives_access_to_a_network_image_is_not_written_down(filename: str, shown: str) -> None:
    """A part of it may be the image's name: so two of them stay two."""
    states = [
        chain_states.of_other_host(node(name), mark="m").layers[0].file for name in (filename, filename + "-other")
    ]
    assert "secret" not in str(states)
    assert states[0].path.startswith(shown.rstrip("."))
    assert states[0] != states[1]


def test_image_on_another_host_has_only_its_name(files: tuple[Path, Path]) -> None:
    chain = chain_states.of_other_host(node(*files, data_file="/x"), mark="m")
    assert (chain.device_mark, chain.boot_id) == ("m", None)
    assert [one.is_proven for layer in chain.layers for one in layer.files] == [False] * 4


@pytest.mark.parametrize("absolute", [True, False])
def test_data_file_is_that_which_is_open(files: tuple[Path, Path], *, absolute: bool) -> None:
    data = files[0].with_name("data")
    data.write_bytes(b"z")
    os.utime(data, ns=(10, 10))
    name = str(data) if absolute else "data"
    for is_open in (True, False):
        known = opened(files[0], data) if is_open else opened(files[0])
        (layer,) = chain_states.of_this_host(node(files[0], data_file=name), mark=None, open_files=known).layers
        assert layer.data_file is not None
        assert layer.data_file.is_proven == is_open
        assert layer.data_file.path == (str(data) if is_open or absolute else "data")


def test_data_file_over_a_network_is_not_proven(files: tuple[Path, Path]) -> None:
    one = node(files[0], data_file="nbd://me@host/x")
    (layer,) = chain_states.of_this_host(one, mark=None, open_files=opened(*files)).layers
    assert layer.data_file == FileState("nbd://host/x")


def test_only_layers_below_and_data_files_need_the_list_of_open_files(files: tuple[Path, Path]) -> None:
    assert not chain_states.needs_open_files(node(files[0]))
    assert chain_states.needs_open_files(node(*files))
    assert chain_states.needs_open_files(node(files[0], data_file="x"))


def test_process_is_found_by_a_thread_and_must_name_the_domain(qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chain_states.pid_of(qemu, "uuid") is None  # the fake has no processor
    monkeypatch.setattr(qemu, "_query_cpus_fast", lambda _given: [{"thread-id": os.getpid()}])
    assert chain_states.pid_of(qemu, "no argument of this process") is None
    argument = Path("/proc/self/cmdline").read_bytes().split(b"\0")[0].decode()
    assert chain_states.pid_of(qemu, argument) == os.getpid()
    monkeypatch.setattr(qemu, "_query_cpus_fast", lambda _given: [{"thread-id": 2**22 + 1}])
    assert chain_states.pid_of(qemu, argument) is None


def test_state_is_replaced_not_changed(files: tuple[Path, Path]) -> None:
    """A disk that nobody looked at has a chain in which nothing is proven."""
    one = node(*files, data_file="data")
    assert [layer.file for layer in one.chain.layers] == [FileState(str(path)) for path in files]
    looked_at = chain_states.of_this_host(one, mark=None, open_files=opened(*files))
    assert replace(one, looked_at=looked_at).chain == looked_at
