"""A chosen backup is held with all that it needs, and what it is not is said."""

from __future__ import annotations

import json
from dataclasses import replace

from tests.recorded import Recorded
from tests.unit.builders import UUID, backup, commit, image
from vbackup.model import EXCLUDED, HostIdentity, LeftOut
from vbackup.repository import chosen, readers, verification
from vbackup.repository.choice import Wanted
from vbackup.repository.repository import Repository
from vbackup.repository.verification import Verdict, Verification
from vbackup.stop import Stop


def test_all_that_a_backup_depends_on_is_held(recorded: Recorded) -> None:
    first, second, *_, newest = recorded.backups
    with chosen.held(recorded.repository, UUID, Wanted(backup_id=second.id), stop=Stop()) as found:
        assert found.needed == {first.id, second.id}
        assert [path.parent.name for _, path in found.paths(recorded.repository, "vda")] == [second.id, first.id]
        in_use = {one.id for one in recorded.backups if readers.is_in_use(recorded.path(one).parent)}
        assert in_use == {first.id, second.id}
        assert found.doubts(recorded.repository) == []
    assert not readers.is_in_use(recorded.path(first).parent)
    with chosen.held(recorded.repository, UUID, Wanted(), stop=Stop()) as found:
        assert found.backup == newest


def test_damage_that_a_verify_has_found_is_said(recorded: Recorded) -> None:
    newest = recorded.backups[-1]
    verdicts = {Verdict.PARTIAL: 0, Verdict.DAMAGED: 1}
    for verdict, count in verdicts.items():
        known = verification.document(Verification(newest.time, verdict, 100.0, 1))
        text = json.dumps({"schema": verification.SCHEMA, **known})
        recorded.path(newest, verification.NAME).write_text(text)
        with chosen.held(recorded.repository, UUID, Wanted(), stop=Stop()) as found:
            doubts = found.doubts(recorded.repository)
        assert len(doubts) == count
    assert f"'vbackup show {UUID} {newest.id}'" in doubts[0]


def test_part_of_a_machine_and_disks_of_several_moments_are_said(repo: Repository) -> None:
    whole = backup(1, image("vda"), image("vdb"))
    part = replace(backup(2, image("vda")), left_out=(LeftOut("vdb", EXCLUDED),), host=HostIdentity("one", "1" * 32))
    other = replace(backup(3, image("vda"), image("vdb")), host=HostIdentity("two", "2" * 32))
    for one in (whole, part, other):
        commit(repo, one)

    def doubts(wanted: Wanted) -> str:
        with chosen.held(repo, UUID, wanted, stop=Stop()) as found:
            return " ".join(found.doubts(repo))

    said = doubts(Wanted(backup_id=part.id))
    assert "made without vdb: it is not the whole domain" in said
    assert "also has backups of this domain from two" in said
    said = doubts(Wanted(backup_id=part.id, host="one", is_mixed=True, disks=("vda",)))
    assert "not the whole" not in said
