"""Target images become nodes of QEMU, by descriptor or by path, and go again without a trace."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_qemu import MIB, FakeDisk, FakeQemu, qcow2_header
from tests.unit.blind_qemu import BlindQemu
from tests.unit.builders import FOREIGN, REPOSITORY, Recorder
from vbackup import names
from vbackup.errors import ConnectionLostError, DomainGoneError, FdsNotNeededError, QmpError, StorageError
from vbackup.images import targets
from vbackup.images.targets import Target
from vbackup.model import SecurityLabel
from vbackup.names import Naming
from vbackup.undo import Undo


@pytest.fixture
def qemu() -> Iterator[FakeQemu]:
    with FakeQemu([FakeDisk()]) as made:
        yield made


@pytest.fixture
def images(tmp_path: Path) -> list[Target]:
    made = [Target(tmp_path / f"{dev}.qcow2", names.Naming(REPOSITORY).target_node(dev)) for dev in ("vda", "vdb")]
    for one in made:
        one.path.write_bytes(qcow2_header(16 * MIB, backing=False))
    return made


def open_all(qemu: FakeQemu, images: list[Target], recorder: Recorder) -> None:
    """Open, and keep open."""
    with Undo(recorder) as undo:
        targets.open_in_qemu(qemu, images, undo=undo)
        undo.release()


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_images_become_nodes_through_descriptors(qemu: FakeQemu, images: list[Target], recorder: Recorder) -> None:
    open_all(qemu, images, recorder)
    added = [sent.arguments for sent in qemu.sent if sent.command == "blockdev-add"]
    assert [(node["driver"], node["node-name"], node["file"]) for node in added] == [
        ("qcow2", one.node_name, {"driver": "file", "filename": f"/dev/fdset/{number}"})
        for number, one in enumerate(images)
    ]


def test_descriptors_carry_the_names_of_their_nodes(qemu: FakeQemu, images: list[Target], recorder: Recorder) -> None:
    open_all(qemu, images, recorder)
    labels = {fd["opaque"] for fdset in qemu.execute("query-fdsets") for fd in fdset["fds"]}
    assert {label.partition(" ")[0] for label in labels} == {image.node_name for image in images}
    assert all(label.startswith(Naming(REPOSITORY).prefix) for label in labels)  # so that a dead run's are found


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A stage in a repository, with the image of one disk."""
    stage = tmp_path / "repo" / "uuid" / "id.partial"
    stage.mkdir(parents=True)
    (stage / "vda.qcow2").write_bytes(qcow2_header(16 * MIB))
    return stage


@pytest.mark.parametrize("fds", [True, False], ids=["descriptor", "path"])
def test_images_of_a_copy_of_the_repository_are_told_from_its_own(
    qemu: FakeQemu, stage: Path, tmp_path: Path, recorder: Recorder, fds: bool
) -> None:
    """Both have the same id, and so the same names in QEMU."""
    naming, node_name = Naming(REPOSITORY), Naming(REPOSITORY).target_node("vda")
    repo, copy = tmp_path / "repo", tmp_path / "copy"
    copy.mkdir()
    assert targets.open_elsewhere(qemu, naming, copy) is None
    qemu.passes_fds = fds
    open_all(qemu, [Target(stage / "vda.qcow2", node_name)], recorder)
    assert targets.open_elsewhere(qemu, naming, repo) is None
    assert targets.open_elsewhere(qemu, naming, copy) == node_name
    assert targets.open_elsewhere(qemu, Naming(FOREIGN), copy) is None
    repo.rename(tmp_path / "renamed")
    assert (targets.open_elsewhere(qemu, naming, tmp_path / "renamed") is None) == fds


def test_images_of_a_dead_run_are_this_repositorys_own_also_while_a_disk_is_corrupt(
    stage: Path, tmp_path: Path, recorder: Recorder
) -> None:
    """QEMU does not describe them then, but they were passed as descriptors, whose labels tell."""
    naming = Naming(REPOSITORY)
    (tmp_path / "copy").mkdir()
    with BlindQemu([FakeDisk()]) as qemu:
        open_all(qemu, [Target(stage / "vda.qcow2", naming.target_node("vda"))], recorder)
        qemu.eject("virtio-disk0")
        assert targets.open_elsewhere(qemu, naming, tmp_path / "repo") is None
        assert targets.open_elsewhere(qemu, naming, tmp_path / "copy") == naming.target_node("vda")


def test_backing_file_is_not_opened(qemu: FakeQemu, images: list[Target], recorder: Recorder) -> None:
    """The node takes only what the job writes."""
    for one in images:
        one.path.write_bytes(qcow2_header(16 * MIB, backing=True))
    open_all(qemu, images, recorder)
    assert all(sent.arguments["backing"] is None for sent in qemu.sent if sent.command == "blockdev-add")


def test_own_descriptor_is_closed_at_once(qemu: FakeQemu, images: list[Target], recorder: Recorder) -> None:
    before = open_fds()
    open_all(qemu, images, recorder)
    assert open_fds() == before + len(images)  # the fake's copies
    qemu.lose_connection(command="add-fd")
    targets.close_all_in_qemu(qemu, Naming(REPOSITORY))
    with pytest.raises(ConnectionLostError):
        open_all(qemu, images, recorder)
    assert open_fds() == before


def test_without_descriptors_the_path_is_used(qemu: FakeQemu, images: list[Target], recorder: Recorder) -> None:
    qemu.passes_fds = False
    open_all(qemu, images, recorder)
    filenames = [sent.arguments["file"]["filename"] for sent in qemu.sent if sent.command == "blockdev-add"]
    assert filenames == [str(one.path) for one in images]


def test_closing_leaves_nothing(qemu: FakeQemu, images: list[Target], recorder: Recorder) -> None:
    before = qemu.state()
    open_all(qemu, images, recorder)
    assert targets.close_all_in_qemu(qemu, Naming(REPOSITORY)) == [one.node_name for one in images]
    assert qemu.state() == before
    assert targets.close_all_in_qemu(qemu, Naming(REPOSITORY)) == []


def test_nodes_and_descriptors_of_others_stay(
    qemu: FakeQemu, images: list[Target], recorder: Recorder, tmp_path: Path
) -> None:
    foreign = Target(tmp_path / "foreign.qcow2", names.Naming(FOREIGN).target_node("vda"))
    foreign.path.write_bytes(qcow2_header(16 * MIB))
    with Undo(recorder) as undo:
        targets.open_in_qemu(qemu, [foreign], undo=undo)
        undo.release()
    before = qemu.state()
    open_all(qemu, images, recorder)
    targets.close_all_in_qemu(qemu, Naming(REPOSITORY))
    assert qemu.state() == before


def test_descriptor_without_a_label_stays(qemu: FakeQemu, tmp_path: Path) -> None:
    """Somebody else's."""
    (tmp_path / "file").touch()
    fd = os.open(tmp_path / "file", os.O_RDWR)
    qemu.execute("add-fd", {}, fd=fd)
    os.close(fd)
    targets.close_all_in_qemu(qemu, Naming(REPOSITORY))
    assert len(qemu.execute("query-fdsets")) == 1


def test_undo_closes_what_was_opened(qemu: FakeQemu, images: list[Target], recorder: Recorder) -> None:
    before = qemu.state()
    with Undo(recorder) as undo:
        targets.open_in_qemu(qemu, images, undo=undo)
    assert qemu.state() == before
    assert recorder.warnings == []


@pytest.mark.parametrize("command", ["add-fd", "blockdev-add"])
@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("carried_out", [False, True], ids=["not sent", "reply lost"])
def test_half_opened_targets_are_closed(
    qemu: FakeQemu, images: list[Target], recorder: Recorder, command: str, nth: int, carried_out: bool
) -> None:
    before = qemu.state()
    qemu.lose_connection(command=command, nth=nth, carried_out=carried_out)
    with pytest.raises(ConnectionLostError), Undo(recorder) as undo:
        targets.open_in_qemu(qemu, images, undo=undo)
    assert qemu.state() == before


def test_refused_image_is_an_error_of_the_target(qemu: FakeQemu, images: list[Target], recorder: Recorder) -> None:
    qemu.refuse("blockdev-add", "Image is corrupt")
    with pytest.raises(StorageError, match=r"QEMU cannot open the image .*/vda.qcow2: Image is corrupt\."):
        open_all(qemu, images, recorder)


@pytest.mark.parametrize(
    ("description", "said"),
    [
        ("Could not open '{}': Permission denied", "this connection cannot carry file descriptors"),
        ("Could not open '{}': No such file or directory", "must be on storage that both hosts have"),
        ("Image is corrupt", "QEMU cannot open the image"),
    ],
)
def test_path_that_qemu_cannot_open_is_told_with_the_way_out(
    qemu: FakeQemu, images: list[Target], recorder: Recorder, description: str, said: str
) -> None:
    qemu.passes_fds = False
    qemu.refuse("blockdev-add", description.format(images[0].path))
    with pytest.raises(StorageError, match=said):
        open_all(qemu, images, recorder)


@pytest.mark.parametrize(
    ("command", "description"),
    [
        ("add-fd", "No file descriptor supplied via SCM_RIGHTS"),
        ("blockdev-add", "Could not open '/dev/fdset/0': Permission denied"),
    ],
)
def test_descriptor_that_is_kept_from_qemu_is_told_with_what_confines_it(
    qemu: FakeQemu, images: list[Target], recorder: Recorder, command: str, description: str
) -> None:
    """The kernel takes it out of the message on its way."""
    qemu.refuse(command, description)
    labels = [SecurityLabel("dac", "+0:+0"), SecurityLabel("apparmor", "libvirt-f000")]
    with (
        pytest.raises(StorageError, match=r"AppArmor probably refuses it.* profile libvirt-f000"),
        Undo(recorder) as undo,
    ):
        targets.open_in_qemu(qemu, images, undo=undo, security_labels=labels)


def test_image_that_is_gone_is_an_error_of_the_target(qemu: FakeQemu, images: list[Target], recorder: Recorder) -> None:
    images[0].path.unlink()
    with pytest.raises(StorageError):
        open_all(qemu, images, recorder)


def test_node_that_qemu_will_not_close_keeps_no_other_open(
    qemu: FakeQemu, images: list[Target], recorder: Recorder
) -> None:
    """A job that would not end holds one of them."""
    open_all(qemu, images, recorder)
    qemu.refuse("blockdev-del", "Node is busy: block device is in use by block job: backup")
    with pytest.raises(QmpError):
        targets.close_in_qemu(qemu, [image.node_name for image in images])
    assert images[1].node_name not in qemu.state()["nodes"]


def test_what_is_in_use_is_closed_after_what_uses_it(qemu: FakeQemu, images: list[Target], recorder: Recorder) -> None:
    """Whatever the names are: the first refusal is of a node that another one of ours stands on."""
    before = qemu.state()
    open_all(qemu, images, recorder)
    qemu.refuse("blockdev-del", "Node is in use")
    assert targets.close_all_in_qemu(qemu, Naming(REPOSITORY)) == [image.node_name for image in images]
    assert qemu.state() == before


def test_node_that_stays_in_use_is_an_error_once_all_others_are_closed(
    qemu: FakeQemu, images: list[Target], recorder: Recorder
) -> None:
    open_all(qemu, images, recorder)
    for nth in (1, 3):
        qemu.refuse("blockdev-del", "Node is busy: block device is in use by block job: backup", nth=nth)
    with pytest.raises(QmpError, match="in use by block job"):
        targets.close_all_in_qemu(qemu, Naming(REPOSITORY))
    assert [name for name in qemu.state()["nodes"] if name.startswith("vbackup-")] == [images[0].node_name]


def test_only_the_nodes_that_are_named_are_closed(qemu: FakeQemu, images: list[Target], recorder: Recorder) -> None:
    open_all(qemu, images, recorder)
    assert targets.close_in_qemu(qemu, [images[0].node_name, "vbackup-not-there"]) == [images[0].node_name]
    assert images[1].node_name in qemu.state()["nodes"]
    assert len(qemu.execute("query-fdsets")) == 1


def test_end_of_the_domain_is_told_as_such(qemu: FakeQemu, images: list[Target], recorder: Recorder) -> None:
    qemu.kill(command="blockdev-add", nth=2)
    with pytest.raises(DomainGoneError):
        open_all(qemu, images, recorder)


@pytest.mark.parametrize(
    ("description", "said"),
    [("Could not open 'x': Permission denied", "check the kernel log"), ("Could not open 'x': No such file", "")],
)
def test_storage_daemon_that_cannot_open_an_image_is_told_with_whose_rights_it_has(
    qemu: FakeQemu, images: list[Target], recorder: Recorder, description: str, said: str
) -> None:
    """It is our own child: no connection, no other host and no other user has a part in it."""
    qemu.fault(FdsNotNeededError("qemu-storage-daemon accepts no file descriptors."), command="add-fd")
    qemu.refuse("blockdev-add", description)
    with pytest.raises(StorageError, match=r"The storage daemon cannot open the image .*/vda.qcow2: ") as caught:
        open_all(qemu, images, recorder)
    assert said in str(caught.value)
    assert not {"descriptor", "connection", "host"} & set(str(caught.value).split())
