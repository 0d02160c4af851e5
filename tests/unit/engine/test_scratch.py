"""Bitmaps in which only the last granule is set are prepared on scratch nodes, and nothing else is left."""

from __future__ import annotations

import pytest

from tests.unit.fake_domain import FakeDomain, run
from vbackup import names
from vbackup.errors import UnsuitableError
from vbackup.repository.repository import Repository


def test_failed_job_of_an_end_mark_is_told_and_leaves_nothing(domain: FakeDomain, repo: Repository) -> None:
    before = domain.qemu.state()
    domain.qemu.fail_job(names.Naming(repo.id).scratch_window, "Input/output error")
    with pytest.raises(UnsuitableError, match="cannot make the end mark of a disk: its job failed: Input/output error"):
        run(domain, repo)
    assert domain.qemu.state() == before
