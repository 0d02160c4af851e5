"""What an address ssh:// means, and what ssh is called with. The rest is in tests/contract and tests/end_to_end."""

from __future__ import annotations

import pytest

from vbackup.errors import StorageError, StoreUnreachableError, UsageError
from vbackup.stores import sftp
from vbackup.stores.ssh import Place, SshStore, place


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("ssh://host/srv/copies", Place("host", None, None, "/srv/copies")),
        ("ssh://backup@host.example.org:2222/srv/copies/", Place("host.example.org", "backup", 2222, "/srv/copies")),
        ("ssh://[fd00::1]:22/a%20b", Place("fd00::1", None, 22, "/a b")),
        ("ssh://Offsite/~/copies", Place("Offsite", None, None, "copies")),
        ("ssh://host/~", Place("host", None, None, ".")),
    ],
)
def test_address(url: str, wanted: Place) -> None:
    assert place(url) == wanted


@pytest.mark.parametrize(
    "url",
    [
        "ssh://host",
        "ssh://host/",
        "ssh:///srv",
        "ssh://-oProxyCommand=x/srv",
        "ssh://-l@host/srv",
        "ssh://host:x/srv",
        "ssh://host:99999/srv",
        "ssh://ho st/srv",
        "ssh://host/srv?x",
        "ssh://host/a%00b",
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(UsageError):
        place(url)


@pytest.mark.parametrize("url", ["ssh://me:hidden@host/srv", "ssh://me:hidden@host:x/srv", "ssh://me:hidden@host"])
def test_password_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(UsageError, match="no password") as raised:
        place(url)
    assert "hidden" not in str(raised.value)


def test_ssh_never_asks_and_gets_no_option_from_an_address() -> None:
    argv = Place("host", "me", 2222, "/srv").argv()
    assert argv[0] == "ssh"
    assert "BatchMode=yes" in argv
    assert argv[-4:] == ["-s", "--", "host", "sftp"]
    assert argv[argv.index("-p") + 1] == "2222"
    assert argv[argv.index("-l") + 1] == "me"
    assert "-p" not in Place("host", None, None, "/srv").argv()


#: A packet with the version of the protocol, for printf(1).
VERSION = r"\000\000\000\005\002\000\000\000\003"


@pytest.mark.parametrize("begin", ["", f"printf '{VERSION}'; "])
def test_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, begin: str) -> None:
    """Its host may answer ssh all the same."""
    monkeypatch.setattr(sftp, "SILENCE_S", 0.2)
    with pytest.raises(StoreUnreachableError, match="has not answered"):
        SshStore("ssh://host/srv", command=lambda _: ["sh", "-c", f"{begin}exec sleep 600"])


def test_packet_that_ends_too_early_is_an_error() -> None:
    """An answer to the first request, which has 17 bytes, with its kind and number and nothing else."""
    answer = r"\000\000\000\005\151\000\000\000\001"
    script = f"head -c 9 >&2; printf '{VERSION}'; head -c 17 >&2; printf '{answer}'; exec sleep 600"
    with pytest.raises(StorageError, match="ends too early"):
        SshStore("ssh://host/srv", command=lambda _: ["sh", "-c", script])


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["sh", "-c", "echo Connection refused >&2; exit 255"], "ssh: Connection refused"),
        (["sh", "-c", "echo Welcome to this host; sleep 60"], "does a shell there print text"),
        (["/nonexistent/ssh"], "cannot be started"),
        (["true"], "the connection ended"),
    ],
)
def test_what_is_no_server(command: list[str], words: str) -> None:
    with pytest.raises(StoreUnreachableError, match=words):
        SshStore("ssh://host/srv", command=lambda _: command)
