"""Commands, replies and errors: what every monitor brings back from QEMU."""

from __future__ import annotations

import os
import time

import pytest

from tests.contract.conftest import SIZE_BYTES, Bench, backup
from vbackup.errors import QmpError


def test_unknown_command_is_told_by_its_class(bench: Bench) -> None:
    error = bench.refused("no-such-command")
    assert error.error_class == "CommandNotFound"
    assert error.description == "The command no-such-command has not been found"


def test_unexpected_argument_is_named(bench: Bench) -> None:
    error = bench.refused("query-jobs", of_whom="nobody")
    assert (error.error_class, error.description) == ("GenericError", "Parameter 'of-whom' is unexpected")


def test_missing_argument_is_named(bench: Bench) -> None:
    assert bench.refused("block-dirty-bitmap-remove", name="b").description == "Parameter 'node' is missing"


def test_command_without_a_result_returns_an_empty_object(bench: Bench) -> None:
    assert bench.execute("transaction", actions=[]) == {}


def test_command_without_arguments_may_omit_them(bench: Bench) -> None:
    assert bench.monitor.execute("query-jobs") == []


def test_version_has_three_numbers(bench: Bench) -> None:
    version = bench.execute("query-version")["qemu"]
    assert all(isinstance(version[part], int) for part in ("major", "minor", "micro"))


def test_next_event_returns_none_in_time(bench: Bench) -> None:
    begun = time.monotonic()
    assert bench.monitor.next_event(0) is None
    assert bench.monitor.next_event(0.05) is None
    assert time.monotonic() - begun < 5


# nodes


def test_added_node_is_listed_with_size_driver_and_file(bench: Bench) -> None:
    path = bench.image()
    bench.open("one", os.fspath(path))
    node = bench.nodes()["one"]
    assert (node["drv"], node["file"], node["ro"]) == ("qcow2", os.fspath(path), False)
    assert node["image"]["virtual-size"] == SIZE_BYTES


def test_raw_node_is_as_large_as_its_file(bench: Bench) -> None:
    bench.node("plain", "raw", 1024 * 1024)
    assert bench.nodes()["plain"]["image"]["virtual-size"] == 1024 * 1024


def test_deleted_node_is_not_listed(bench: Bench) -> None:
    bench.node("one")
    bench.execute("blockdev-del", node_name="one")
    assert "one" not in bench.nodes()


def test_missing_file_is_an_error_that_names_it(bench: Bench) -> None:
    missing = os.fspath(bench.directory / "missing.qcow2")
    with pytest.raises(QmpError) as caught:
        bench.open("one", missing)
    assert missing in caught.value.description
    assert "No such file" in caught.value.description
    assert "one" not in bench.nodes()


def test_file_of_another_format_is_refused(bench: Bench) -> None:
    with pytest.raises(QmpError, match="not in qcow2 format"):
        bench.open("one", os.fspath(bench.image("raw")))


def test_node_name_is_taken_once(bench: Bench) -> None:
    bench.node("one")
    with pytest.raises(QmpError, match="Duplicate nodes with node-name"):
        bench.node("one")


@pytest.mark.parametrize(("length", "fits"), [(31, True), (32, False)])
def test_node_name_has_at_most_31_bytes(bench: Bench, length: int, fits: bool) -> None:
    name = "n" * length
    if fits:
        assert bench.node(name) in bench.nodes()
    else:
        with pytest.raises(QmpError, match="too long"):
            bench.node(name)


def test_node_name_begins_with_a_letter(bench: Bench) -> None:
    with pytest.raises(QmpError, match="Invalid node-name"):
        bench.node("1one")


def test_image_that_is_open_for_writing_cannot_be_opened_again(bench: Bench) -> None:
    path = bench.image()
    bench.open("one", os.fspath(path))
    with pytest.raises(QmpError, match="lock"):
        bench.open("two", os.fspath(path))


def test_unknown_node_cannot_be_deleted(bench: Bench) -> None:
    assert "no-such-node" in bench.refused("blockdev-del", node_name="no-such-node").description


def test_node_of_a_device_cannot_be_deleted(bench: Bench) -> None:
    root = bench.disk_node()
    assert "in use" in bench.refused("blockdev-del", node_name=root).description
    assert root in bench.nodes()


def test_target_of_a_job_cannot_be_deleted_until_the_job_has_ended(bench: Bench) -> None:
    bench.node("source")
    bench.node("target")
    bench.transaction(backup("j", "source", "target"))
    bench.wait("j", "pending")
    assert "busy" in bench.refused("blockdev-del", node_name="target").description
    assert "in use" in bench.refused("blockdev-del", node_name="source").description
    bench.execute("job-finalize", id="j")
    bench.wait("j", "concluded")
    bench.execute("blockdev-del", node_name="target")  # before it is dismissed
    assert "target" not in bench.nodes()


# file descriptors


def test_passed_descriptor_is_listed_with_its_label(bench: Bench) -> None:
    number = pass_fd(bench, "vbackup-label")
    fds = fdsets(bench)[number]
    assert [fd["opaque"] for fd in fds] == ["vbackup-label"]


def test_each_descriptor_has_a_set_of_its_own(bench: Bench) -> None:
    first, second = pass_fd(bench, "first"), pass_fd(bench, "second")
    assert first != second
    assert {first, second} <= set(fdsets(bench))


def test_removed_set_is_not_listed(bench: Bench) -> None:
    number = pass_fd(bench, "label")
    bench.execute("remove-fd", fdset_id=number)
    assert number not in fdsets(bench)


def test_unknown_set_cannot_be_removed(bench: Bench) -> None:
    assert "not found" in bench.refused("remove-fd", fdset_id=4711).description


def test_add_fd_without_a_descriptor_is_an_error(bench: Bench) -> None:
    assert "No file descriptor supplied" in bench.refused("add-fd", opaque="label").description


def test_caller_keeps_its_descriptor(bench: Bench) -> None:
    fd = os.open(bench.image(), os.O_RDWR)
    bench.monitor.execute("add-fd", {"opaque": "label"}, fd=fd)
    os.fstat(fd)
    os.close(fd)


def test_image_is_opened_through_a_descriptor(bench: Bench) -> None:
    """What QEMU may not open by its path it opens as /dev/fdset/N."""
    number = pass_fd(bench, "label", size_bytes=2 * SIZE_BYTES)
    bench.open("through", f"/dev/fdset/{number}")
    node = bench.nodes()["through"]
    assert node["image"]["virtual-size"] == 2 * SIZE_BYTES
    assert node["file"] == f"/dev/fdset/{number}"


def test_set_in_use_goes_with_its_node(bench: Bench) -> None:
    """The order of vbackup is node first, then set; the other order leaves nothing either."""
    number = pass_fd(bench, "label")
    bench.open("through", f"/dev/fdset/{number}")
    bench.execute("remove-fd", fdset_id=number)
    bench.execute("blockdev-del", node_name="through")
    assert number not in fdsets(bench)


def test_set_stays_after_its_node_was_deleted(bench: Bench) -> None:
    number = pass_fd(bench, "label")
    bench.open("through", f"/dev/fdset/{number}")
    bench.execute("blockdev-del", node_name="through")
    assert number in fdsets(bench)
    bench.execute("remove-fd", fdset_id=number)
    assert number not in fdsets(bench)


def test_unknown_set_cannot_be_opened(bench: Bench) -> None:
    with pytest.raises(QmpError, match=r"fdset|FD|descriptor"):
        bench.open("through", "/dev/fdset/4711")


def test_read_only_descriptor_cannot_be_opened_for_writing(bench: Bench) -> None:
    fd = os.open(bench.image(), os.O_RDONLY)
    number = bench.monitor.execute("add-fd", {"opaque": "label"}, fd=fd)["fdset-id"]
    os.close(fd)
    with pytest.raises(QmpError):
        bench.open("through", f"/dev/fdset/{number}")


def pass_fd(bench: Bench, opaque: str, *, size_bytes: int = SIZE_BYTES) -> int:
    fd = os.open(bench.image(size_bytes=size_bytes), os.O_RDWR)
    number: int = bench.monitor.execute("add-fd", {"opaque": opaque}, fd=fd)["fdset-id"]
    os.close(fd)
    return number


def fdsets(bench: Bench) -> dict[int, list[dict[str, str]]]:
    return {one["fdset-id"]: one["fds"] for one in bench.execute("query-fdsets")}
