"""A restore is exact or an error that names the link; nothing is overwritten, nothing hostile is opened."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libvirt
import pytest

from tests.lab import DiskSpec, Lab, References, compare, domain_xml, qemu_img_info
from vbackup.cli import main
from vbackup.repository import manifest

if TYPE_CHECKING:
    from tests.conftest import Command

NVRAM = b"variables" * 100


@dataclass(frozen=True)
class Made:
    """A repository with a full, two incrementals and a differential of two disks, and references."""

    path: Path
    ids: tuple[str, ...]
    uuid: str
    references: dict[str, dict[str, Path]]  #: by backup and dev


@pytest.fixture(scope="module")
def made(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Made:
    directory = tmp_path_factory.mktemp("made")
    repository = directory / "repository"
    specs = [DiskSpec(directory / f"{dev}.qcow2", dev=dev, size="8M") for dev in ("vda", "vdb")]
    nvram = directory / "nvram.fd"
    nvram.write_bytes(NVRAM)
    machine = lab.boot("réstore", specs)
    assert main(["init", "-q", "-r", str(repository)]) == 0
    backups, references = [], {}
    for step, level in enumerate(("full", "incremental", "incremental", "differential")):
        for number, dev in enumerate(("vda", "vdb")):
            machine.write(dev, f"write -P {step + 1 + 100 * number} {step}M 1M", f"write -z {step * 512}k 64k")
        taken = References(directory / f"references{step}")
        with pytest.MonkeyPatch.context() as patch, taken.taken(patch):
            assert main(["-c", lab.uri, "-q", "backup", "réstore", "-r", str(repository), "--level", level]) == 0
        images = taken.finish(machine)
        [manifest] = [
            json.loads(path.read_text())
            for path in repository.glob("*/*/manifest.json")
            if path.parent.name not in backups
        ]
        backups.append(manifest["id"])
        references[manifest["id"]] = {disk["dev"]: images[disk["node_name"]] for disk in manifest["disks"]}
    uuid = machine.handle.uuid
    lab.remove(machine)
    return Made(repository, tuple(backups), uuid, references)


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Made:
    """A copy of the repository that may be damaged; its files' times say nothing (the newest first)."""
    path = tmp_path / "copy"
    shutil.copytree(made.path, path)
    for age, backup_id in enumerate(made.ids):
        for file in (path / made.uuid / backup_id).rglob("*"):
            os.utime(file, (10**9 - age, 10**9 - age))
    return Made(path, made.ids, made.uuid, made.references)


def edit_manifest(copy: Made, index: int, edit: Any) -> None:
    path = copy.path / copy.uuid / copy.ids[index] / "manifest.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(manifest.text_of(document))


@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
def test_every_point_of_a_copied_repository(copy: Made, command: Command, tmp_path: Path, image_format: str) -> None:
    for backup_id, references in copy.references.items():
        output = tmp_path / backup_id
        done = command(
            "restore",
            "réstore",
            "-r",
            copy.path,
            "--backup",
            backup_id,
            "--output",
            output,
            "--format",
            image_format,
            "--json",
        ).document
        assert done["schema"] == "vbackup.restore/1"
        assert done["id"] == backup_id
        for disk in done["disks"]:
            compare(Path(disk["file"]), references[disk["dev"]])
            assert Path(disk["file"]).stat().st_mode & 0o777 == 0o600
        assert sorted(path.name for path in output.iterdir()) == [
            "domain.xml", f"vda.{image_format}", f"vdb.{image_format}"
        ]  # fmt: skip


def test_any_image_is_the_whole_disk_for_qemu_itself(made: Made) -> None:
    for backup_id, references in made.references.items():
        for dev, reference in references.items():
            compare(made.path / made.uuid / backup_id / f"{dev}.qcow2", reference)


def test_restored_domain_can_be_defined_and_started(made: Made, lab: Lab, command: Command, tmp_path: Path) -> None:
    command("-q", "restore", "réstore", "-r", made.path, "--output", tmp_path / "with space", "--format", "raw")
    machine = lab.start((tmp_path / "with space" / "domain.xml").read_text())
    try:
        assert machine.handle.uuid == made.uuid
        opened = {entry["inserted"]["file"] for entry in machine.execute("query-block") if "inserted" in entry}
        assert opened == {str(tmp_path / "with space" / f"{dev}.raw") for dev in ("vda", "vdb")}
    finally:
        lab.remove(machine)


@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
def test_libvirt_takes_the_definition_in_either_format(
    lab: Lab, command: Command, repository: Path, tmp_path: Path, image_format: str
) -> None:
    """With what libvirt allows for qcow2 only, and what belongs to a login that is not there any more."""
    cache = "<metadata_cache><max_size unit='bytes'>1048576</max_size></metadata_cache>"
    driver = "cache='none' io='native' discard='unmap' detect_zeroes='unmap'"
    if lab.host.connection.getLibVersion() >= 9_005_000:
        driver += " discard_no_unref='on'"
    spec = DiskSpec(tmp_path / "vda.qcow2", driver=driver)
    spec.create()
    machine = lab.start(domain_xml("formats", [spec.xml().replace("/><source", f">{cache}</driver><source", 1)]))
    command("-c", lab.uri, "-q", "backup", "formats", "-r", repository)
    lab.remove(machine)
    command("-q", "restore", "formats", "-r", repository, "--output", tmp_path / "out", "--format", image_format)
    text = (tmp_path / "out" / "domain.xml").read_text()
    assert ("metadata_cache" in text) == (image_format == "qcow2")
    again = lab.host.connection.defineXMLFlags(text, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    again.undefine()


def test_one_disk_and_uuid_for_a_name(made: Made, command: Command, tmp_path: Path) -> None:
    command("-q", "restore", made.uuid.upper(), "-r", made.path, "--disk", "vdb", "--output", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["domain.xml", "vdb.qcow2"]


def test_point_in_time(made: Made, command: Command, tmp_path: Path) -> None:
    backups = command("list", "-r", made.path, "réstore", "--json").document["backups"]
    assert [backup["id"] for backup in backups] == list(made.ids)
    middle = backups[1]["time"]
    done = command("-q", "restore", "réstore", "-r", made.path, "--at", middle, "--output", tmp_path / "out", "--json")
    assert done.document["id"] == made.ids[1]
    refused = command(
        "restore", "réstore", "-r", made.path, "--at", "2001-01-01T00:00:00Z", "--output", tmp_path / "no", status=6
    )
    assert "No backup of this domain was made at 2001-01-01 00:00:00Z or before; the oldest" in refused.stderr
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("existing", ["vda.qcow2", "domain.xml"])
def test_nothing_is_overwritten(made: Made, command: Command, tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("mine")
    refused = command("restore", "réstore", "-r", made.path, "--output", tmp_path, status=7)
    assert f"{tmp_path / existing} already exists, and vbackup never overwrites" in refused.stderr
    assert (tmp_path / existing).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [existing]


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("--backup", "20200101T000000Z-full"), 6, "No backup '20200101T000000Z-full' of this domain"),
        (("--disk", "vdz"), 5, "Disk vdz: backup"),
        (("--at", "yesterday-ish"), 2, "'yesterday-ish' is not a time like"),
        (("--format", "vmdk"), 2, "invalid choice: 'vmdk'"),
        (("--backup", "x", "--at", "2026-01-01"), 2, "not allowed with argument"),
    ],
)
def test_wrong_arguments(
    made: Made, command: Command, tmp_path: Path, options: tuple[str, ...], status: int, said: str
) -> None:
    refused = command("restore", "réstore", "-r", made.path, "--output", tmp_path / "out", *options, status=status)
    assert said in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def restore_refused(copy: Made, command: Command, tmp_path: Path, *options: str) -> str:
    refused = command("-q", "restore", "réstore", "-r", copy.path, "--output", tmp_path / "out", *options, status=6)
    assert not (tmp_path / "out").exists()
    return refused.stderr


def test_missing_link_is_named(copy: Made, command: Command, tmp_path: Path) -> None:
    shutil.rmtree(copy.path / copy.uuid / copy.ids[1])
    said = restore_refused(copy, command, tmp_path, "--backup", copy.ids[2])
    assert f"backup {copy.ids[1]} is missing from the repository; backup {copy.ids[2]} depends on it" in said
    # The differential does not need it.
    command("-q", "restore", "réstore", "-r", copy.path, "--output", tmp_path / "fine")


def test_flipped_bit_is_found(copy: Made, command: Command, tmp_path: Path) -> None:
    image = copy.path / copy.uuid / copy.ids[0] / "vdb.qcow2"
    with image.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1000, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    said = restore_refused(copy, command, tmp_path, "--backup", copy.ids[0])
    assert f"the image {image} of backup {copy.ids[0]} was altered or is damaged" in said
    command("-q", "restore", "réstore", "-r", copy.path, "--disk", "vda", "--output", tmp_path / "fine")
    damage = command("verify", "--all", "-r", copy.path, "--json", status=6).document["domains"][0]["damage"]
    assert [(one["file"], one["affected"][0]) for one in damage] == [(str(image), copy.ids[0])]


def test_truncated_image_is_found(copy: Made, command: Command, tmp_path: Path) -> None:
    image = copy.path / copy.uuid / copy.ids[0] / "vda.qcow2"
    os.truncate(image, image.stat().st_size - 1)
    assert f"the image of backup {copy.ids[0]} is missing or has another size" in restore_refused(
        copy, command, tmp_path
    )


def test_foreign_image_is_found(copy: Made, command: Command, tmp_path: Path) -> None:
    directory = copy.path / copy.uuid
    shutil.copy(directory / copy.ids[0] / "vdb.qcow2", directory / copy.ids[0] / "vda.qcow2")
    # Also if somebody made the size fit.
    size_bytes = (directory / copy.ids[0] / "vdb.qcow2").stat().st_size
    edit_manifest(copy, 0, lambda document: document["disks"][0].update(file_size_bytes=size_bytes))
    assert "was altered or is damaged" in restore_refused(copy, command, tmp_path)


def test_header_that_names_another_file_is_not_followed(copy: Made, command: Command, tmp_path: Path) -> None:
    image = copy.path / copy.uuid / copy.ids[3] / "vda.qcow2"
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * (8 << 20))
    subprocess.run(["qemu-img", "rebase", "-u", "-F", "raw", "-b", str(secret), str(image)], check=True)
    size_bytes = image.stat().st_size
    digest = "sha256:" + hashlib.sha256(image.read_bytes()).hexdigest()
    edit_manifest(copy, 3, lambda document: document["disks"][0].update(file_size_bytes=size_bytes, digest=digest))
    said = restore_refused(copy, command, tmp_path)
    assert "names the backing file" in said
    assert "nothing was opened" in said


def test_symbolic_link_in_place_of_an_image_is_not_followed(copy: Made, command: Command, tmp_path: Path) -> None:
    image = copy.path / copy.uuid / copy.ids[0] / "vda.qcow2"
    image.rename(tmp_path / "elsewhere")
    image.symlink_to(tmp_path / "elsewhere")
    assert "is missing or has another size" in restore_refused(copy, command, tmp_path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda document: document["disks"][0].update(file="../../../etc/shadow"),
        lambda document: document["disks"][0].update(dev="../x", file="../x.qcow2"),
        lambda document: document["disks"][0].update(base="../../elsewhere"),
        lambda document: document["disks"][0].update(virtual_size_bytes=2**80),
        lambda document: document["disks"].append(document["disks"][0]),
        lambda document: document.update(disks={"vda": 1}),
        lambda document: document.update(sequence=-1),
        lambda document: document.update(schema="vbackup.manifest/2"),
        lambda document: document["domain"].update(uuid="11111111-1111-1111-1111-111111111111"),
    ],
)
def test_hostile_manifest_is_refused(copy: Made, command: Command, tmp_path: Path, edit: Any) -> None:
    edit_manifest(copy, 3, edit)
    said = restore_refused(copy, command, tmp_path)
    assert f"Backup {copy.ids[3]}, the newest by its name, is broken" in said
    assert f"The newest readable one before it is {copy.ids[2]}" in said
    restore_refused(copy, command, tmp_path, "--backup", copy.ids[3])
    command("-q", "restore", "réstore", "-r", copy.path, "--backup", copy.ids[2], "--output", tmp_path / "older")
    listed = command("list", "-r", copy.path, "--json", status=6).document
    assert [one["id"] for one in listed["broken"]] == [copy.ids[3]]
    assert [one["id"] for one in listed["backups"]] == list(copy.ids[:3])


def test_chain_that_turns_in_a_circle_is_refused(copy: Made, command: Command, tmp_path: Path) -> None:
    edit_manifest(copy, 0, lambda document: [disk.update(base=copy.ids[2]) for disk in document["disks"]])
    said = restore_refused(copy, command, tmp_path, "--backup", copy.ids[2])
    assert "claims to depend on a later one" in said


def test_altered_domain_xml_is_found(copy: Made, command: Command, tmp_path: Path) -> None:
    path = copy.path / copy.uuid / copy.ids[3] / "domain.xml"
    path.write_text(path.read_text().replace("réstore", "other"))
    assert "domain.xml of backup" in restore_refused(copy, command, tmp_path)


def test_show_tells_the_chain(made: Made, command: Command) -> None:
    shown = command("show", "réstore", "-r", made.path, "--backup", made.ids[2], "--json").document
    assert shown["schema"] == "vbackup.show/1"
    assert shown["chains"] == {dev: [made.ids[2], made.ids[1], made.ids[0]] for dev in ("vda", "vdb")}
    text = command("show", "réstore", "-r", made.path).stdout
    assert re.search(rf"Chain of vda \(2 images, [\d.]+ MiB\):\n  {made.ids[3]}\n  {made.ids[0]}\n", text)


def test_list_as_tree(made: Made, command: Command) -> None:
    lines = command("list", "-r", made.path, "--tree").stdout.splitlines()
    assert lines[0] == f"Domain réstore ({made.uuid})"
    depth = {backup_id: next(line for line in lines if backup_id in line).index(backup_id) for backup_id in made.ids}
    assert depth[made.ids[0]] < depth[made.ids[1]] == depth[made.ids[3]] < depth[made.ids[2]]


def test_nvram_goes_along(lab: Lab, command: Command, repository: Path, tmp_path: Path) -> None:
    store = tmp_path / "nvram.fd"
    store.write_bytes(bytes(540672))
    loader = tmp_path / "code.fd"
    loader.write_bytes(Path("/usr/share/seabios/bios-256k.bin").read_bytes())
    spec = DiskSpec(tmp_path / "vda.qcow2", size="4M")
    spec.create()
    xml = domain_xml("nvram", [spec.xml()]).replace(
        "hvm</type>",
        f"hvm</type><loader readonly='yes' type='pflash'>{loader}</loader><nvram>{store}</nvram>",
    )
    machine = lab.start(xml)
    try:
        command("-c", lab.uri, "-q", "backup", "nvram", "-r", repository)
    finally:
        machine.destroy()
        machine.handle.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
        lab.machines.remove(machine)
    command("-q", "restore", "nvram", "-r", repository, "--output", tmp_path / "out")
    assert (tmp_path / "out" / "nvram").read_bytes() == store.read_bytes()
    assert f">{tmp_path}/out/nvram</nvram>" in (tmp_path / "out" / "domain.xml").read_text()
    assert qemu_img_info(tmp_path / "out" / "vda.qcow2")["virtual-size"] == 4 << 20
