"""Each of libvirt's QEMU drivers has its own directories."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vbackup.domain import driver
from vbackup.domain.driver import Directories

SYSTEM = Directories(Path("/var/lib/libvirt/qemu/nvram"), Path("/var/lib/libvirt/swtpm"))


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("qemu:///system", SYSTEM),
        ("qemu+unix:///system?socket=/run/x", SYSTEM),
        ("qemu:///embed?root=/r", Directories(Path("/r/lib/qemu/nvram"), Path("/r/lib/swtpm"))),
        ("qemu:///embed", None),
        ("qemu+ssh://other/system", None),
        ("test:///default", None),
        ("xen:///system", None),
    ],
)
def test_directories_are_those_of_the_uri(uri: str, expected: Directories | None) -> None:
    assert driver.directories(uri) == expected


def test_driver_of_a_user_keeps_all_in_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    libvirts = Path("/home/me/.config/libvirt/qemu")
    assert driver.directories("qemu:///session") == Directories(libvirts / "nvram", libvirts / "swtpm")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/config")
    assert driver.directories("qemu:///session") == Directories(
        Path("/config/libvirt/qemu/nvram"), Path("/config/libvirt/qemu/swtpm")
    )


def test_without_a_uri_it_is_the_driver_of_the_user_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert driver.directories(None) == SYSTEM
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert driver.directories(None) == driver.directories("qemu:///session")
