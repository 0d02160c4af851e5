"""The end of a backup: what is checked once its jobs have ended, before it gets its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fake_qemu import FakeDisk
from tests.unit.blind_qemu import BlindQemu
from tests.unit.builders import UUID
from tests.unit.fake_domain import FakeDomain, run, shrink_and_grow
from vbackup.errors import BusyError, DiskError
from vbackup.images import targets
from vbackup.model import Level
from vbackup.repository.repository import Repository

IMAGES = ("vda.qcow2", "vdb.qcow2")


def test_image_that_another_host_writes_is_digested_when_that_has_closed_it(
    domain: FakeDomain, repo: Repository, early: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    domain.is_local = False
    closed: list[int] = []
    close = targets.close_all_in_qemu
    monkeypatch.setattr(
        targets, "close_all_in_qemu", lambda *args, **more: closed.append(len(early)) or close(*args, **more)
    )
    run(domain, repo)
    assert (closed[-1], len(early)) == (0, 2)


def test_shrink_between_the_choice_and_the_transaction_fails_the_backup(domain: FakeDomain, repo: Repository) -> None:
    base, execute = run(domain, repo), domain.qemu.execute

    def execute_and_shrink(command: str, *args: Any, **kwargs: Any) -> Any:
        if command == "transaction":
            shrink_and_grow(domain)
        return execute(command, *args, **kwargs)

    domain.qemu.execute = execute_and_shrink  # type: ignore[method-assign]
    with pytest.raises(BusyError, match="Disk vda was made smaller while its backup began or ended"):
        run(domain, repo)
    domain.qemu.execute = execute  # type: ignore[method-assign]
    assert repo.catalogue(UUID).history.backups == (base,)
    assert [disk.level for disk in run(domain, repo).disks] == [Level.FULL, Level.INCREMENTAL]


def test_image_that_was_found_corrupt_after_its_copy_leaves_the_end_mark_unknown(
    domain: FakeDomain, repo: Repository
) -> None:
    domain.qemu = BlindQemu([FakeDisk(f"virtio-disk{n}", path=f"/images/{name}") for n, name in enumerate(IMAGES)])
    domain.paths = {"vda": "/images/vda.qcow2", "vdb": "/images/vdb.qcow2"}
    base, execute = run(domain, repo), domain.qemu.execute

    def execute_and_eject(command: str, *args: Any, **kwargs: Any) -> Any:
        reply = execute(command, *args, **kwargs)
        if command == "query-jobs" and any(job["status"] == "concluded" for job in reply):
            domain.qemu.eject("virtio-disk0")  # type: ignore[attr-defined]
        return reply

    domain.qemu.execute = execute_and_eject  # type: ignore[method-assign]
    with pytest.raises(DiskError, match=r"Disk vda: whether it was made smaller .* is ejected"):
        run(domain, repo)
    assert repo.catalogue(UUID).history.backups == (base,)
    # A full relies on no end mark: what was copied before is kept.
    domain.qemu.ejected = None  # type: ignore[attr-defined]
    assert run(domain, repo, level=Level.FULL).level is Level.FULL
