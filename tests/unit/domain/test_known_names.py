"""Names that libvirt knows, asked of its own test driver; and what is not asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vbackup.domain import known_names

DOMAIN = """<domain type='test'><name>{name}</name><uuid>{uuid}</uuid><memory>8192</memory><os><type>hvm</type></os>
<devices>
<disk type='file' device='disk'><source file='/a'/><target dev='vdb' bus='virtio'/></disk>
<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
<interface type='network'><source network='default'/><target dev='vnet0'/></interface>
<disk type="block"><source dev='/dev/sdz'/><target bus="virtio" dev="vda"/></disk>
</devices></domain>"""
UUID = "6695eb01-f6a4-8304-79aa-97f2502e1930"


@pytest.fixture
def uri(tmp_path: Path) -> str:
    path = tmp_path / "node.xml"
    domains = DOMAIN.format(name="web", uuid=UUID) + DOMAIN.format(name="a &amp; b", uuid=UUID.replace("66", "77"))
    path.write_text(f"<node>{domains}</node>")
    return f"test://{path}"


def test_domains_and_disks_are_those_of_libvirt(uri: str) -> None:
    assert known_names.domains(uri) == ["a & b", "web"]
    for word in ("web", UUID):
        assert known_names.disks(uri, word) == ["sda", "vda", "vdb"]
    assert known_names.disks(uri, "other") == []


@pytest.mark.parametrize(
    "uri",
    [
        *("qemu+ssh://root@hv1/system", "qemu://hv1/system", "qemu+tcp://[::1]/system", "qemu+ssh:///system"),
        *("qemu+ext:///system?command=/bin/false", "qemu:///embed?root=/srv", "hail", "", "qemu://[/system"),
    ],
)
def test_what_could_ask_or_lock_is_not_asked(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setattr(known_names, "_default_uri", lambda: uri)
    assert not known_names.is_near(uri)
    assert known_names.domains(uri) is None
    assert known_names.disks(uri, "web") is None


@pytest.mark.parametrize(
    "uri", ["qemu:///system", "qemu:///session", "qemu+unix:///system?socket=/s", "test:///default"]
)
def test_daemon_of_this_host_is_asked(uri: str) -> None:
    assert known_names.is_near(uri)


def test_without_a_uri_it_is_the_one_that_libvirt_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uri: str
) -> None:
    settings = tmp_path / "libvirt.conf"
    monkeypatch.setattr(known_names, "_SETTINGS", settings)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert known_names._default_uri() == "qemu:///system"
    settings.write_text('# uri_default = "qemu:///no"\n  uri_default="qemu+ssh://hv1/system"\n')
    assert known_names._default_uri() == "qemu+ssh://hv1/system"
    assert known_names.domains(None) is None
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", uri)
    assert known_names.domains(None) == ["a & b", "web"]


def test_user_has_other_settings_and_another_libvirt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert known_names._default_uri() == "qemu:///session"
    (tmp_path / "libvirt").mkdir()
    (tmp_path / "libvirt" / "libvirt.conf").write_text('uri_default = "qemu:///system"\n')
    assert known_names._default_uri() == "qemu:///system"
