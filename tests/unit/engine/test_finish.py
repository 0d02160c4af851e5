"""The end of a backup: what is checked once its jobs have ended, before it gets its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import UUID
from tests.unit.fake_domain import FakeDomain, run, shrink_and_grow
from vbackup.errors import BusyError
from vbackup.images import targets
from vbackup.model import Level
from vbackup.repository.repository import Repository


def test_image_that_another_host_writes_is_digested_when_that_has_closed_it(
    domain: FakeDomain, repo: Repository, early: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    domain.is_local = False
    closed: list[int] = []
    close = targets.close_all_in_qemu
    monkeypatch.setattr(targets, "close_all_in_qemu", lambda *args: closed.append(len(early)) or close(*args))
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
