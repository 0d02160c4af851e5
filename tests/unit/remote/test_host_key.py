"""What ssh says of a host key that has changed, as OpenSSH 9.2 does, is one sentence."""

from __future__ import annotations

import pytest

from vbackup.remote import ciphers, host_key
from vbackup.remote.address import Address
from vbackup.remote.host_key import ChangedKey

HV1 = Address("hv1", "qemu:///system")
SAID = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!
Someone could be eavesdropping on you right now (man-in-the-middle attack)!
It is also possible that a host key has just been changed.
The fingerprint for the ED25519 key sent by the remote host is
SHA256:4TtZbYjYtQfVx2Dk1uVg9b0y0f9Q5Vd1cP3bC0r9vXo.
Please contact your system administrator.
Add correct host key in /root/.ssh/known_hosts to get rid of this message.
Offending ECDSA key in /root/.ssh/known_hosts:3
  remove with:
  ssh-keygen -f "/root/.ssh/known_hosts" -R "[hv1]:2222"
Host key for [hv1]:2222 has changed and you have requested strict checking.
Host key verification failed.
"""


@pytest.mark.parametrize("said", [SAID, SAID.replace("\n", "\r\n"), f"Cannot recv data: {SAID}: Connection reset"])
def test_banner_is_read(said: str) -> None:
    key = host_key.changed(said, Address("hv1", "qemu:///system", port=2222))
    assert key is not None
    sent = "SHA256:4TtZbYjYtQfVx2Dk1uVg9b0y0f9Q5Vd1cP3bC0r9vXo"
    assert key == ChangedKey("[hv1]:2222", "ECDSA", "/root/.ssh/known_hosts", "3", sent)
    assert key.reason == (
        "the host key of [hv1]:2222 is not the ECDSA key that ssh knows (/root/.ssh/known_hosts, line 3): it has sent"
        f" {sent}"
    )
    assert "'ssh-keygen -f /root/.ssh/known_hosts -R '[hv1]:2222'' forgets the old one" in key.remedy


def test_what_is_missing_is_left_out() -> None:
    key = host_key.changed("RSA host key for hv1 has changed and you have requested strict checking.", HV1)
    assert key == ChangedKey("hv1", None, None, None, None)
    assert key.reason == "the host key of hv1 is not the key that ssh knows"
    assert "'ssh-keygen -R hv1'" in key.remedy


@pytest.mark.parametrize("said", ["", "Host key verification failed.", "No ED25519 host key is known for hv1"])
def test_other_words_are_of_something_else(said: str) -> None:
    assert host_key.changed(said, HV1) is None


CONFIGURED = {"hostname": "hv1.example.com", "port": "2200", "hostkeyalias": "rack7"}


@pytest.mark.parametrize(
    ("host", "is_its_own"),
    [
        ("HV1.example.com", True),
        ("[hv1.example.com]:2200", True),
        ("rack7", True),
        ("hv1", True),
        ("hv2", False),
        ("[hv2]:2200", False),
        ("[hv1]:22222", False),
    ],
)
def test_banner_about_another_host_is_what_a_login_prints(
    host: str, is_its_own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ciphers, "configured", lambda _argv: CONFIGURED)
    key = host_key.changed(SAID.replace("for [hv1]:2222 has", f"for {host} has"), HV1)
    assert (key is not None) is is_its_own


def test_program_that_is_not_ssh_is_not_asked_how_it_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ciphers, "configured", lambda argv: pytest.fail(str(argv)))
    assert host_key.changed(SAID, Address("hv1", "qemu:///system", port=2222, command="/opt/tunnel")) is not None
