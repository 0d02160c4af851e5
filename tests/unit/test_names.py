"""Names of ours are made and taken apart without loss, and fit where QEMU and the filesystem take them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.builders import NOON
from vbackup import names
from vbackup.model import Level
from vbackup.names import BitmapName

LEVELS = [Level.FULL, Level.INCREMENTAL, Level.DIFFERENTIAL, Level.COPY]

repository_ids = st.from_regex(names.REPOSITORY_ID, fullmatch=True)
devs = st.from_regex(names.DEV, fullmatch=True)
times = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 30), timezones=st.just(timezone.utc))  # noqa: DTZ001
levels = st.sampled_from(LEVELS)


@given(repository_ids, times, levels, devs, st.booleans())
def test_bitmap_name_round_trip(repository_id: str, time: datetime, level: Level, dev: str, working: bool) -> None:
    backup = names.backup_id(time, level)
    token = None if working else names.new_token()
    name = (
        names.Naming(repository_id).working_bitmap(backup, dev)
        if token is None
        else names.Naming(repository_id).bitmap(backup, dev, token)
    )
    parsed = names.parse_bitmap(name)
    assert parsed == BitmapName(repository_id, backup, dev, token)
    assert parsed.working == working


@given(repository_ids, times, levels, devs)
def test_bitmap_of_what_is_allocated_is_one_that_only_its_backup_needs(
    repository_id: str, time: datetime, level: Level, dev: str
) -> None:
    """So a dead run's is removed by the next backup."""
    backup = names.backup_id(time, level)
    name = names.Naming(repository_id).allocation_bitmap(backup, dev)
    assert names.parse_bitmap(name) == BitmapName(repository_id, backup, dev, None)


def test_names_of_nodes_for_allocation_fit_too() -> None:
    naming = names.Naming("0123456789ab")
    made = [naming.allocation_sink]
    made += [name(index) for name in (naming.extended_node, naming.file_data_node) for index in (0, 999)]
    assert len(set(made)) == 5
    assert max(map(len, made)) <= 31
    assert not any(names.DEV.fullmatch(name.removeprefix(naming.prefix)) for name in made), "no target's"


def test_token_tells_the_place_of_the_repository() -> None:
    here, there = (names.Naming("0123456789ab", names.place_of(path)) for path in ("/srv/backups", "/srv/copy"))
    assert here.place != there.place
    token = names.new_token(here.place)
    parsed = names.parse_bitmap(here.bitmap("20261123T120000Z-full", "vda", token))
    assert parsed is not None
    assert parsed.token == token
    assert not parsed.is_of_other_place(here)
    assert parsed.is_of_other_place(there)
    assert not parsed.is_of_other_place(names.Naming("0123456789ab"))
    assert not parsed.is_of_other_place(names.Naming("0123456789ac", there.place))


def test_token_of_an_older_version_tells_no_place() -> None:
    naming = names.Naming("0123456789ab", "ffff")
    parsed = names.parse_bitmap(naming.bitmap("20261123T120000Z-full", "vda", names.new_token()))
    assert parsed is not None
    assert not parsed.is_of_other_place(naming)


def test_target_nodes_are_told_from_the_others() -> None:
    naming = names.Naming("0123456789ab")
    assert naming.is_target_node(naming.target_node("vda"))
    for other in (naming.fleecing_node(0), naming.scratch_source, names.Naming("0123456789ac").target_node("vda")):
        assert not naming.is_target_node(other)


@given(repository_ids, devs)
def test_node_name_fits_into_31_bytes(repository_id: str, dev: str) -> None:
    assert len(names.Naming(repository_id).target_node(dev).encode()) <= 31


def test_node_name_of_the_longest_dev_has_31_bytes() -> None:
    assert len(names.Naming("0123456789ab").target_node("vd23456789")) == 31
    assert names.DEV.fullmatch("vd23456789")
    assert not names.DEV.fullmatch("vd234567890")


@given(times, levels)
def test_backup_id_is_recognised(time: datetime, level: Level) -> None:
    assert names.BACKUP_ID.fullmatch(names.backup_id(time, level))


@given(times, times, levels)
def test_ids_sort_as_their_moments(one: datetime, other: datetime, level: Level) -> None:
    if one.replace(microsecond=0) < other.replace(microsecond=0):
        assert names.backup_id(one, level) < names.backup_id(other, level)


def test_backup_id_is_in_utc() -> None:
    noon_elsewhere = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert names.backup_id(noon_elsewhere, Level.FULL) == "20261123T120000Z-full"


@given(st.text())
def test_any_text_is_taken_apart_or_refused(text: str) -> None:
    parsed = names.parse_bitmap(text)
    assert parsed is None or text.startswith(names.Naming(parsed.repository_id).prefix)


@pytest.mark.parametrize(
    "foreign",
    [
        "",
        "backup-1",
        "vbackup-",
        "vbackup-0123456789ab-20261123T101500Z-full",
        "vbackup-0123456789ab-20261123T101500Z-full-vda",
        "vbackup-0123456789ab-20261123T101500Z-full-vda-other",
        "vbackup-0123456789AB-20261123T101500Z-full-vda-fedcba987654",
        "vbackup-0123456789ab-20261123T101500Z-auto-vda-fedcba987654",
        "vbackup-0123456789ab-20261123T101500Z-full-vda-fedcba98765",
        "xvbackup-0123456789ab-20261123T101500Z-full-vda-fedcba987654",
        "vbackup-0123456789ab-20261123T101500Z-full-vda-fedcba987654\n",
        "vbackup-0123456789ab-20261123T101500Z-full-vda-fedcba987654-working",
        "libvirt-checkpoint",
    ],
)
def test_foreign_bitmap_is_not_ours(foreign: str) -> None:
    assert names.parse_bitmap(foreign) is None
    assert names.repository_of(foreign) is None


def test_mark_of_a_rollback_is_taken_apart_and_is_no_checkpoint() -> None:
    name = names.Naming("0123456789ab").rollback_mark("20261123T101500Z-full", "vda")
    assert names.parse_rollback_mark(name) == names.RollbackMark("0123456789ab", "20261123T101500Z-full", "vda")
    assert names.parse_bitmap(name) is None
    assert names.repository_of(name) == "0123456789ab"
    assert names.parse_rollback_mark(name + "x") is None


def test_end_mark_is_taken_apart() -> None:
    name = names.Naming("0123456789ab").end_mark("vda", 8 << 30)
    assert names.parse_end_mark(name) == names.EndMark("0123456789ab", "vda", 8 << 30)
    assert (names.parse_bitmap(name), names.repository_of(name)) == (None, "0123456789ab")


@pytest.mark.parametrize("size", ["", "0", "-1", "1k", "01", "1\n", "9" * 20])
def test_name_without_a_size_is_no_end_mark(size: str) -> None:
    assert names.parse_end_mark(f"vbackup-0123456789ab-end-vda-{size}") is None


def test_scratch_nodes_are_closed_after_what_stands_on_them_and_are_no_targets() -> None:
    repository_id = "0123456789ab"
    above = [names.Naming(repository_id).scratch_source, names.Naming(repository_id).scratch_window]
    for number in (0, 999999):
        node = names.Naming(repository_id).scratch_node(number)
        assert sorted([node, *above])[-1] == node
        assert len(node) <= 31
    assert all(len(node) <= 31 and not names.DEV.fullmatch(node[len("vbackup-0123456789ab-") :]) for node in above)


def test_ids_are_of_ascii_digits_only() -> None:
    """Other digits look the same but sort and compare differently."""
    assert not names.BACKUP_ID.fullmatch("\N{ARABIC-INDIC DIGIT TWO}0261123T101500Z-full")


@pytest.mark.parametrize("dev", ["vda", "sdz", "vdaa", "hda", "fda", "xvda1", "nvme0n1", "ubda"])
def test_names_of_real_disks_are_accepted(dev: str) -> None:
    assert names.DEV.fullmatch(dev)


@pytest.mark.parametrize("dev", ["", ".", "..", "../x", "a/b", "vda\n", "-vda", "1vda", "Vda", "vda.qcow2", "vdä"])
def test_names_that_could_leave_the_directory_are_refused(dev: str) -> None:
    assert not names.DEV.fullmatch(dev)


def test_repository_ids_differ() -> None:
    made = {names.new_repository_id() for _ in range(100)}
    assert len(made) == 100
    assert all(names.REPOSITORY_ID.fullmatch(one) for one in made)


def test_two_repositories_share_no_prefix() -> None:
    assert (
        not names.Naming("0123456789ab")
        .working_bitmap("20261123T101500Z-full", "vda")
        .startswith(names.Naming("0123456789ac").prefix)
    )


def test_what_an_audit_has_in_qemu_is_told_from_a_backups() -> None:
    naming = names.Naming("0123456789ab")
    audit_id = names.audit_id(NOON)
    assert names.BACKUP_ID.fullmatch(audit_id) is None
    parsed = names.parse_bitmap(naming.working_bitmap(audit_id, "vda"))
    assert parsed is not None
    assert (parsed.is_of_audit, parsed.working, parsed.dev) == (True, True, "vda")
    job = names.parse_job(naming.job(audit_id, "vda"))
    assert job is not None
    assert job.backup_id == audit_id
    for node in (naming.audit_copy(9999), naming.audit_bits(9999)):
        assert len(node) <= 31
        assert not naming.is_target_node(node)


@pytest.mark.parametrize("text", ["", " ", "a/b", "a\0b", "a\nb", "\udcff", "x" * 256, "ä" * 128])
def test_what_is_no_name_of_a_file(text: str) -> None:
    assert not names.is_printable_part(text, max_bytes=255)
    assert not names.is_file_name(text)


def test_names_of_files() -> None:
    assert all(names.is_file_name(text) for text in ("x" * 255, "ä" * 127, "with space", "-a", "a.b"))
    assert not names.is_file_name("..")
    assert not names.is_file_name(".hidden")


def test_tracker_s_names_are_no_repository_s() -> None:
    owner = names.tracker_id("acme:web")
    assert names.TRACKER_ID.fullmatch(owner)
    assert not names.REPOSITORY_ID.fullmatch(owner)
    assert names.is_tracker(owner)
    assert not names.is_tracker(names.new_repository_id())
    assert owner != names.tracker_id("acme:web2")


@given(times, levels, devs)
def test_bitmap_of_a_tracker_is_ours_and_its_own(time: datetime, level: Level, dev: str) -> None:
    owner = names.tracker_id("acme")
    name = names.Naming(owner).bitmap(names.backup_id(time, level), dev, names.new_token())
    parsed = names.parse_bitmap(name)
    assert parsed is not None
    assert parsed.repository_id == owner
    assert names.is_ours(name)
    assert names.repository_of(names.Naming(owner).end_mark(dev, 1)) == owner


def test_session_s_id_tells_when_it_began() -> None:
    session = names.new_session_id(NOON)
    assert names.SESSION_ID.fullmatch(session)
    assert session.startswith(names.stamp(NOON))
    assert names.new_session_id(NOON) != session


@pytest.mark.parametrize("name", ["", ".", "-x", "a/b", "a b", "x" * 64, "\u00e4"])
def test_what_is_no_name_of_a_tracker(name: str) -> None:
    assert not names.TRACKER.fullmatch(name)


def test_time_of_an_id_is_that_of_its_stamp() -> None:
    moment = datetime(2026, 11, 23, 10, 15, tzinfo=timezone.utc)
    assert names.time_of(names.backup_id(moment, Level.FULL)) == moment
    with pytest.raises(ValueError, match="does not match"):
        names.time_of("latest")
