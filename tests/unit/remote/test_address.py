"""Where ssh finds the host of a libvirt URI."""

from __future__ import annotations

import pytest

from vbackup.errors import UsageError
from vbackup.remote.address import Address, parse


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("qemu+ssh://hv1/system", Address("hv1", "qemu:///system")),
        ("qemu+ssh://Hv1/session", Address("Hv1", "qemu:///session")),
        ("qemu+ssh://root@hv1:2222/system", Address("hv1", "qemu:///system", user="root", port=2222)),
        ("qemu+ssh://a%40b@[fd77::2]:22/system", Address("fd77::2", "qemu:///system", user="a@b", port=22)),
        ("qemu+ssh://[fe80::1%25eth0]/system", Address("fe80::1%eth0", "qemu:///system")),
        (
            "qemu+ssh://hv1/system?keyfile=/root/my%20key&command=/opt/ssh&no_verify=1",
            Address("hv1", "qemu:///system", keyfile="/root/my key", command="/opt/ssh", host_keys="no"),
        ),
        ("qemu+ssh://hv1/system?no_verify=0", Address("hv1", "qemu:///system")),
        (
            "qemu+libssh2://hv1/system?known_hosts=/k&known_hosts_verify=auto",
            Address("hv1", "qemu:///system", known_hosts="/k", host_keys="accept-new"),
        ),
        ("qemu+libssh://hv1/", Address("hv1", "qemu:///")),
        ("qemu:///system", None),
        ("qemu+unix:///system?socket=/run/x", None),
        ("qemu+tls://hv1/system", None),
        ("qemu+ssh:///system", None),
    ],
)
def test_uri(uri: str, address: Address | None) -> None:
    assert parse(uri) == address


def test_port_that_is_none() -> None:
    with pytest.raises(UsageError, match="no valid port"):
        parse("qemu+ssh://hv1:x/system")


def test_place_is_what_a_user_would_type() -> None:
    assert Address("hv1", "qemu:///system", user="root").place == "root@hv1"
    assert Address("hv1", "qemu:///system").place == "hv1"
