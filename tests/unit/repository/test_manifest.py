"""What was written down is read back; what somebody damaged is refused before any image is opened."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.builders import UUID, backup, backup_id, image, incremental
from vbackup.errors import ChainError
from vbackup.layers import ChainState, FileState, LayerState
from vbackup.model import (
    EXCLUDED,
    Backup,
    BlockDriver,
    ChangeRecord,
    Consistency,
    DiskImage,
    Group,
    GroupMember,
    HostIdentity,
    ImageFormat,
    LeftOut,
    Level,
    MachineFile,
    MachineKind,
)
from vbackup.repository import manifest

SIMPLE = incremental(2, backup(1), "vda", "vdb")

sizes = st.integers(0, 2**63 - 1)
texts = st.text(max_size=20)
some_levels = st.sampled_from([Level.FULL, Level.INCREMENTAL, Level.DIFFERENTIAL, Level.COPY])
some_devs = st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True)
some_ids = st.integers(1, 20).flatmap(lambda number: some_levels.map(lambda level: backup_id(number, level)))


@st.composite
def images(draw: st.DrawFn, dev: str) -> DiskImage:
    return image(
        dev,
        level=draw(some_levels),
        base=draw(st.none() | some_ids),
        reason=draw(texts),
        virtual_size_bytes=draw(sizes),
        file_size_bytes=draw(sizes),
        copied_bytes=draw(sizes),
        bitmap=draw(st.none() | texts),
        source=draw(st.none() | texts),
        source_format=BlockDriver(draw(texts)),
        node_name=draw(texts),
        encrypted=draw(st.booleans()),
        change=draw(st.none() | st.builds(ChangeRecord, sizes, sizes, sizes, sizes, st.none() | texts)),
        checkpoint=draw(st.none() | some_ids),
    )


@st.composite
def machine_files(draw: st.DrawFn) -> MachineFile:
    kind = draw(st.sampled_from(MachineKind))
    dev = draw(some_devs) if kind is MachineKind.MEDIUM else None
    image_format = draw(st.none() | st.sampled_from(ImageFormat)) if kind is MachineKind.NVRAM else None
    return MachineFile(kind, draw(sizes), draw(texts), draw(st.none() | texts), dev, image_format)


@st.composite
def backups(draw: st.DrawFn) -> Backup:
    moment = draw(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(timezone.utc)))  # noqa: DTZ001
    devs = draw(st.lists(some_devs, max_size=3, unique=True))
    machine = draw(st.lists(machine_files(), max_size=3, unique_by=lambda one: one.file))
    files = draw(st.dictionaries(st.sampled_from(manifest.FURTHER_FILES), texts))
    return Backup(
        id=draw(some_ids),
        sequence=draw(sizes),
        level=draw(some_levels),
        parent=draw(st.none() | some_ids),
        time=moment,
        domain_name=draw(texts),
        domain_uuid=UUID,
        disks=tuple(draw(images(dev)) for dev in devs),
        left_out=tuple(draw(st.lists(st.builds(LeftOut, texts, texts, texts.filter(bool)), max_size=2))),
        consistency=draw(st.sampled_from(Consistency)),
        frozen_ms=draw(sizes),
        duration_s=draw(st.floats(0, 1e9)),
        files={**files, **{one.file: one.digest for one in machine if one.kind is MachineKind.NVRAM}},
        versions=draw(st.dictionaries(st.sampled_from(["vbackup", "qemu", "libvirt"]), texts)),
        host=draw(st.none() | st.builds(HostIdentity, texts, st.none() | texts)),
        machine=tuple(machine),
        autostart=draw(st.none() | st.booleans()),
        loader=draw(st.none() | texts),
    )


def load(text: str, of: Backup = SIMPLE) -> Backup:
    return manifest.load(text, backup_id=of.id, domain_uuid=of.domain_uuid)


@given(backups())
def test_round_trip(one: Backup) -> None:
    assert load(manifest.dump(one), one) == one


def test_size_is_of_all_images_together() -> None:
    assert manifest.document(SIMPLE)["size_bytes"] == 2 * 200704


def test_time_is_utc_with_microseconds() -> None:
    half_past = datetime(2026, 11, 23, 12, 30, 0, 250000, timezone(timedelta(hours=2)))
    assert manifest.iso(half_past) == "2026-11-23T10:30:00.250000Z"


def test_backing_file_is_the_image_of_the_base_by_relative_path() -> None:
    disks = manifest.document(SIMPLE)["disks"]
    assert [disk["backing_file"] for disk in disks] == [f"../{backup_id(1)}/{dev}.qcow2" for dev in ("vda", "vdb")]
    assert manifest.document(backup(1))["disks"][0]["backing_file"] is None


def test_format_of_the_disk_is_written_by_its_name() -> None:
    disks = (image(source_format=BlockDriver("vmdk")), image("vdb"))
    assert [disk["source_format"] for disk in manifest.document(backup(1, *disks))["disks"]] == ["vmdk", "qcow2"]


def test_text_is_json_that_people_can_read() -> None:
    text = manifest.dump(backup(1, domain_name="käse"))
    assert "käse" in text
    assert json.loads(text)["schema"] == "vbackup.manifest/1"
    assert text.endswith("}\n")


def changed(**changes: Any) -> str:
    """The manifest of SIMPLE with members replaced; a path into it is written with double underscores."""
    document = json.loads(manifest.dump(SIMPLE))
    del document["digest"]  # or any change would be noticed
    for path, value in changes.items():
        *parents, last = (int(part) if part.isdigit() else part for part in path.split("__"))
        inner: Any = document
        for parent in parents:
            inner = inner[parent]
        if value is MISSING:
            del inner[last]
        else:
            inner[last] = value
    return json.dumps(document)


MISSING = "(missing)"


def test_any_change_is_noticed_by_the_digest() -> None:
    text = manifest.dump(SIMPLE)
    assert json.loads(text)["digest"].startswith("sha256:")
    for old, new in (
        ('"asked for"', '"asked fos"'),
        ('"duration_s": 1.5', '"duration_s": 1.4'),
        ('"cdrom"', '"cdroM"'),
    ):
        assert old in text
        with pytest.raises(ChainError, match="its content differs from its digest; it was altered or is damaged"):
            load(text.replace(old, new))


def test_order_and_white_space_are_no_change_and_an_older_manifest_has_no_digest() -> None:
    document = json.loads(manifest.dump(SIMPLE))
    assert load(json.dumps(dict(reversed(document.items())))) == SIMPLE
    del document["digest"]
    assert load(json.dumps(document)) == SIMPLE


def test_members_of_a_newer_vbackup_keep_their_digest() -> None:
    text = manifest.text_of({**json.loads(manifest.dump(SIMPLE)), "tomorrow": [1.0, "k\ud800se"]})
    assert json.loads(text)["tomorrow"] == [1.0, "k\ud800se"]
    assert load(json.dumps(json.loads(text))) == SIMPLE


def test_unknown_members_are_tolerated() -> None:
    assert load(changed(tomorrow=[1], disks__0__new=2, domain__title="x", versions__nbdkit="1.32")) == SIMPLE


@pytest.mark.parametrize("missing", ["encrypted", "file"])
def test_missing_member_of_a_disk_is_named(missing: str) -> None:
    with pytest.raises(ChainError, match=rf"disks\[0\].{missing} should be .*, but is missing"):
        load(changed(**{f"disks__0__{missing}": MISSING}))


def test_image_needs_a_block_list_or_a_digest() -> None:
    with pytest.raises(ChainError, match="disk vda should have blocks or a digest"):
        load(changed(disks__0__digest=MISSING))


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "vbackup.manifest/2"},
        {"schema": MISSING},
        {"id": "../x"},
        {"id": backup_id(3)},
        {"domain__uuid": "f0000000-0000-4000-8000-000000000002"},
        {"domain": MISSING},
        {"parent": "../../etc"},
        {"parent": "x"},
        {"parent": 7},
        {"level": "auto?"},
        {"level": "FULL"},
        {"time": "yesterday"},
        {"time": "0001-01-01T00:00:00+23:59"},
        {"time": ""},
        {"sequence": -1},
        {"sequence": "1"},
        {"sequence": True},
        {"sequence": 2**63},
        {"duration_s": -1},
        {"duration_s": float("nan")},
        {"duration_s": 10**400},
        {"consistency": "fine"},
        {"files": []},
        {"files": {"domain.xml": 7}},
        {"versions": 7},
        {"disks": {}},
        {"disks__0": 7},
        {"disks__0__dev": "../x"},
        {"disks__0__dev": "vdb"},  # a disk twice, and not its file
        {"disks__0__dev": ""},
        {"disks__0__dev": "../x", "disks__0__file": "../x.qcow2"},
        {"disks__0__dev": "/etc/x", "disks__0__file": "/etc/x.qcow2"},
        {"disks__0__file": "../../vda.qcow2"},
        {"disks__0__file": "/etc/passwd"},
        {"disks__0__file": "vdb.qcow2"},
        {"disks__0__file": "vda.raw"},
        {"disks__0__base": "../x"},
        {"disks__0__base": backup_id(1) + "/.."},
        {"disks__0__base": backup_id(1) + "\n"},
        {"disks__0__level": "half"},
        {"disks__0__virtual_size_bytes": -1},
        {"disks__0__file_size_bytes": 2**64},
        {"disks__0__encrypted": "no"},
        {"left_out": [{"dev": 7, "reason": "x"}]},
    ],
    ids=lambda change: " ".join(f"{key}={str(value)[:30]}" for key, value in change.items()),
)
def test_wrong_member_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ChainError, match=f"manifest of backup {SIMPLE.id}"):
        load(changed(**change))


def test_disk_twice_is_refused() -> None:
    document = json.loads(manifest.dump(SIMPLE))
    document["disks"].append(document["disks"][0])
    with pytest.raises(ChainError, match="a disk twice"):
        load(json.dumps(document))


def test_only_known_files_are_taken_from_the_manifest() -> None:
    """Their names become part of paths."""
    loaded = load(changed(files={"domain.xml": "sha256:1", "../../etc/passwd": "sha256:2", "nvram": "sha256:3"}))
    assert set(loaded.files) == {"domain.xml", "nvram"}


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "\0", "[" * 100_000, '{"schema": "vbackup.manifest/1"'])
def test_torn_manifest_is_told(text: str) -> None:
    with pytest.raises(ChainError, match="manifest of backup"):
        load(text)


@given(st.text())
def test_any_text_is_refused_as_ours(text: str) -> None:
    with pytest.raises(ChainError):
        load(text)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@st.composite
def damaged(draw: st.DrawFn) -> Any:
    """A real manifest with some values replaced or removed, somewhere inside."""
    document = copy.deepcopy(json.loads(manifest.dump(SIMPLE)))
    for _ in range(draw(st.integers(1, 3))):
        inner = document
        while True:
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(inner[key], (dict, list)) and inner[key] and draw(st.integers(0, 3)):
                inner = inner[key]
                continue
            if isinstance(inner, dict) and draw(st.booleans()):
                del inner[key]
            else:
                inner[key] = draw(junk)
            break
    return document


@given(damaged())
def test_any_damage_is_refused_as_ours_or_harmless(document: Any) -> None:
    try:
        one = load(json.dumps(document))
    except ChainError:
        return
    assert (one.id, one.domain_uuid) == (SIMPLE.id, SIMPLE.domain_uuid)
    for disk in one.disks:
        assert disk.file == f"{disk.dev}.qcow2"
        assert "/" not in disk.dev
    assert set(one.files) <= set(manifest.FURTHER_FILES)


@given(st.integers(0, 2000), st.integers(0, 50), st.text(max_size=10))
def test_any_torn_text_is_refused_as_ours_or_harmless(begin: int, length: int, put: str) -> None:
    text = manifest.dump(SIMPLE)
    try:
        one = load(text[:begin] + put + text[begin + length :])
    except ChainError:
        return
    assert (one.id, one.domain_uuid) == (SIMPLE.id, SIMPLE.domain_uuid)


GROUP = Group(
    "0123456789ab",
    (GroupMember("web", UUID, backup_id(1)), GroupMember("käse\n", "gone", "anything")),
    12.5,
)


def test_group_is_read_as_it_was_written() -> None:
    one = backup(1, group=GROUP)
    assert manifest.load(manifest.dump(one), backup_id=one.id, domain_uuid=UUID) == one


def test_backup_for_itself_has_no_member_group() -> None:
    one = backup(1)
    assert "group" not in manifest.document(one)
    assert manifest.load(manifest.dump(one), backup_id=one.id, domain_uuid=UUID).group is None


@pytest.mark.parametrize(
    "group", [1, [], {}, {"id": "x", "members": [1], "spread_ms": 1}, {"id": "x", "members": [], "spread_ms": "1"}]
)
def test_group_that_is_none_is_told(group: object) -> None:
    one = backup(1)
    document = {**json.loads(manifest.dump(one)), "group": group}
    with pytest.raises(ChainError, match="group"):
        manifest.load(json.dumps(document), backup_id=one.id, domain_uuid=UUID)


# what older versions did not write


def test_manifest_without_kinds_and_host_is_read() -> None:
    one = backup(1, host=HostIdentity("h", None), left_out=(LeftOut("vdb", EXCLUDED), LeftOut("tpm", "x", kind="tpm")))
    document = json.loads(manifest.dump(one))
    assert document["host"] == {"name": "h", "machine_id": None}
    assert [left["kind"] for left in document["left_out"]] == ["disk", "tpm"]
    del document["host"]
    for left in document["left_out"]:
        del left["kind"]
    found = load(manifest.text_of(document), one)
    assert found.host is None
    assert [left.kind for left in found.left_out] == ["disk", "disk"]
    assert found.excluded == one.excluded == ("vdb",)


@pytest.mark.parametrize("host", [7, {}, {"name": None}, {"name": "h", "machine_id": 7}])
def test_host_that_is_none_is_told(host: object) -> None:
    document = json.loads(manifest.dump(SIMPLE))
    document["host"] = host
    with pytest.raises(ChainError, match="host"):
        load(json.dumps(document))


# what the machine needs beside its disks


NVRAM = MachineFile(MachineKind.NVRAM, 9, "sha256:" + "2" * 64, "/nvram/web_VARS.fd", image_format=ImageFormat.QCOW2)


def entry(**changes: Any) -> dict[str, Any]:
    known = {"kind": "medium", "dev": "sda", "file": "sda.medium", "size_bytes": 1, "digest": "sha256:3", "path": None}
    return {**known, **changes}


def test_machine_is_listed_with_what_proves_each_file() -> None:
    document = manifest.document(backup(1, machine=(NVRAM,), autostart=True, loader="/OVMF.fd"))
    assert document["machine"] == [
        {
            "kind": "nvram",
            "file": "nvram",
            "format": "qcow2",
            "size_bytes": 9,
            "digest": NVRAM.digest,
            "path": "/nvram/web_VARS.fd",
        }
    ]
    assert (document["autostart"], document["loader"]) == (True, "/OVMF.fd")


def test_earlier_manifest_has_no_machine_and_says_nothing_of_autostart() -> None:
    one = load(manifest.dump(SIMPLE))
    assert (one.machine, one.autostart, one.loader) == ((), None, None)
    assert not {"machine", "autostart", "loader"} & json.loads(manifest.dump(SIMPLE)).keys()


def test_digests_are_of_every_file_that_is_no_image() -> None:
    one = backup(1, machine=(NVRAM,))
    assert one.digests == {"domain.xml": "sha256:" + "1" * 64, "nvram": NVRAM.digest}
    assert one.machine_file(MachineKind.NVRAM) == NVRAM
    assert one.machine_file(MachineKind.TPM) is None


def test_kind_of_a_newer_vbackup_is_passed_over() -> None:
    assert load(changed(machine=[entry(kind="crystal", file="../../x"), entry()])).machine == (
        MachineFile(MachineKind.MEDIUM, 1, "sha256:3", None, "sda"),
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([entry(file="../sda.medium")], "never writes a medium to a file '../sda.medium'"),
        ([entry(dev="../sda", file="../sda.medium")], "never writes a medium"),
        ([entry(kind="tpm", file="nvram")], "never writes a tpm to a file 'nvram'"),
        ([entry(), entry()], "lists sda.medium twice"),
        ([entry(size_bytes=-1)], "should be an integer"),
        ([entry(kind="nvram", file="nvram", format="vmdk")], "vmdk"),
        ({"nvram": 1}, "should be a list"),
    ],
)
def test_machine_file_that_leads_out_of_the_backup_is_refused(wrong: Any, said: str) -> None:
    with pytest.raises(ChainError, match=said):
        load(changed(machine=wrong))


def test_two_digests_of_one_file_are_refused() -> None:
    nvram = entry(kind="nvram", file="nvram")
    with pytest.raises(ChainError, match="two digests of nvram"):
        load(changed(machine=[nvram], files={"domain.xml": "sha256:1", "nvram": "sha256:4"}))


def test_without_chains_all_else_is_read_and_proved_by_the_digest() -> None:
    chain = ChainState((LayerState("node", FileState("/a", 1, 2, 3, 4)),), "mark", "boot")
    one = replace(SIMPLE, disks=tuple(replace(disk, chain=chain) for disk in SIMPLE.disks))
    text = manifest.dump(one)
    argv = {"backup_id": one.id, "domain_uuid": one.domain_uuid}
    assert manifest.load(text, **argv) == one
    assert manifest.load(text, **argv, with_chains=False) == SIMPLE
    altered = text.replace('"/a"', '"/b"')
    assert altered != text
    with pytest.raises(ChainError, match="differs from its digest"):
        manifest.load(altered, **argv, with_chains=False)
    # Without a digest, only reading shows whether it is a manifest.
    members = json.loads(text)
    del members["digest"]
    assert manifest.load(json.dumps(members), **argv, with_chains=False) == one
    members["disks"][0]["chain"] = 7
    with pytest.raises(ChainError, match="chain should be an object"):
        manifest.load(json.dumps(members), **argv, with_chains=False)
