"""QEMU's user is the one of the domain's label, or of the host's."""

from __future__ import annotations

import os

import pytest

from vbackup.domain import qemu_user
from vbackup.domain.qemu_user import QemuUser
from vbackup.errors import MalformedError
from vbackup.model import SecurityLabel

HOST = [SecurityLabel("none", ""), SecurityLabel("dac", "+64055:+109")]


def test_user_of_the_host_unless_the_domain_has_one() -> None:
    assert qemu_user.of(HOST) == QemuUser(64055, 109)
    assert qemu_user.of([SecurityLabel("apparmor", "x"), SecurityLabel("dac", "+7:+8"), *HOST]) == QemuUser(7, 8)
    assert qemu_user.of([SecurityLabel("dac", "root:root"), *HOST]) == QemuUser(0, 0)


def test_driver_without_users_runs_qemu_as_its_own() -> None:
    assert qemu_user.of([]) == QemuUser(os.geteuid(), os.getegid())


def test_user_that_this_host_does_not_have() -> None:
    with pytest.raises(MalformedError, match="no such user"):
        qemu_user.of([SecurityLabel("dac", "nobody-has-this:+1")])
