"""The command lines of ssh."""

from __future__ import annotations

import subprocess

from vbackup.remote import command
from vbackup.remote.address import Address

_ADDRESS = Address("fd77::2", "qemu:///system", user="root", port=2222, keyfile="/k y", command="/opt/ssh")


def test_connection_is_made_as_the_uri_says_and_asks_nothing() -> None:
    argv = command.connection(_ADDRESS, "/tmp/x/ssh", "program")
    assert argv[:7] == ["/opt/ssh", "-p", "2222", "-l", "root", "-i", "/k y"]
    assert argv[-3:] == ["--", "fd77::2", "program"]
    options = {argv[index + 1] for index, word in enumerate(argv) if word == "-o"}
    assert {"BatchMode=yes", "ExitOnForwardFailure=yes", "StreamLocalBindMask=0177"} <= options
    assert {"ControlMaster=yes", "ControlPath=/tmp/x/ssh"} <= options
    assert not any(option.startswith("StrictHostKeyChecking") for option in options)  # as ssh is configured


def test_ciphers_are_those_of_the_configuration_unless_some_are_given() -> None:
    assert not any("Ciphers" in word for word in command.connection(_ADDRESS, "/c", "program"))
    assert "Ciphers=a,b" in command.connection(_ADDRESS, "/c", "program", ciphers="a,b")
    there = command.settings(_ADDRESS)
    assert there == ["/opt/ssh", "-G", "-p", "2222", "-l", "root", "-i", "/k y", "--", "fd77::2"]
    assert command.settings(_ADDRESS, is_default=True)[:4] == ["/opt/ssh", "-G", "-F", "/dev/null"]


def test_host_keys_as_libssh_has_them_in_the_uri() -> None:
    address = Address("hv1", "qemu:///system", known_hosts="/k", host_keys="yes")
    argv = command.connection(address, "/c", "program")
    assert argv[1:5] == ["-o", "UserKnownHostsFile=/k", "-o", "StrictHostKeyChecking=yes"]


def test_sockets_are_forwarded_over_the_open_connection() -> None:
    there = command.forwarding(_ADDRESS, "/c", remote="/r", local="/l")
    assert there[-8:] == ["-S", "/c", "-O", "forward", "-R", "/r:/l", "--", "fd77::2"]
    here = command.forwarding(_ADDRESS, "/c", remote="/r", local="/l", to_remote=True)
    assert here[-4:] == ["-L", "/l:/r", "--", "fd77::2"]
    ended = command.forwarding(_ADDRESS, "/c", remote="/r", local="/l", ends=True)
    assert ended == ["cancel" if word == "forward" else word for word in there]


def test_what_a_user_can_try() -> None:
    assert command.by_hand(_ADDRESS) == "/opt/ssh -p 2222 -l root -i '/k y' -o BatchMode=yes fd77::2 true"


def test_source_runs_in_any_shell_and_leaves_what_follows() -> None:
    source = 'import os\nprint("it\'s", os.read(0, 100))\n'
    done = subprocess.run(
        ["sh", "-c", command.bootstrap()],
        input=command.packed(source) + b"rest",
        stdout=subprocess.PIPE,
        check=True,
    )
    assert done.stdout == b"it's b'rest'\n"
    assert not set(command.bootstrap()) & set("!$`\\\n")
