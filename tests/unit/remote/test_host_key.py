"""What ssh says of a host key that has changed, as OpenSSH 9.2 does, is one sentence."""

from __future__ import annotations

import pytest

from vbackup.remote import host_key
from vbackup.remote.host_key import ChangedKey

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
    key = host_key.changed(said)
    assert key is not None
    sent = "SHA256:4TtZbYjYtQfVx2Dk1uVg9b0y0f9Q5Vd1cP3bC0r9vXo"
    assert key == ChangedKey("[hv1]:2222", "ECDSA", "/root/.ssh/known_hosts", "3", sent)
    assert key.reason == (
        "the host key of [hv1]:2222 is not the ECDSA key that ssh knows (/root/.ssh/known_hosts, line 3): it has sent"
        f" {sent}"
    )
    assert "'ssh-keygen -f /root/.ssh/known_hosts -R '[hv1]:2222'' forgets the old one" in key.remedy


def test_what_is_missing_is_left_out() -> None:
    key = host_key.changed("RSA host key for hv1 has changed and you have requested strict checking.")
    assert key == ChangedKey("hv1", None, None, None, None)
    assert key.reason == "the host key of hv1 is not the key that ssh knows"
    assert "'ssh-keygen -R hv1'" in key.remedy


@pytest.mark.parametrize("said", ["", "Host key verification failed.", "No ED25519 host key is known for hv1"])
def test_other_words_are_of_something_else(said: str) -> None:
    assert host_key.changed(said) is None
