"""A helper in a process of this host, in place of one behind ssh, and a virsh that answers from files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vbackup.remote import command, connection
from vbackup.remote.address import Address
from vbackup.remote.connection import Connection
from vbackup.remote.link import Link

VIRSH = """\
#!/bin/sh
printf '%s\\n' "$*" >> {directory}/log
for file in {directory}/replies/*; do
    case "$*" in *"${{file##*/}}"*) cat "$file"; exit ;; esac
done
echo 'error: failed to get domain' >&2
exit 1
"""

#: ssh: it runs the last word, and says of each forwarding what it was asked for.
SSH = """\
#!/bin/sh
for word; do :; done
case "$*" in *"-O forward"*) echo "Forwarding is not allowed: $*" >&2; exit 255 ;; esac
exec sh -c "$word"
"""


@dataclass
class Virsh:
    """What libvirt there is asked, and what it answers."""

    directory: Path

    def answer(self, word: str, text: str) -> None:
        """Have a command that contains the word print the text."""
        (self.directory / "replies" / word).write_text(text)

    def asked(self) -> list[str]:
        """The commands so far: their last argument."""
        log = self.directory / "log"
        return log.read_text().splitlines() if log.exists() else []

    def count(self, word: str) -> int:
        """How many commands contain the word."""
        return sum(word in line for line in self.asked())


@pytest.fixture
def virsh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Virsh:
    """On the PATH of what is started from now on."""
    (tmp_path / "replies").mkdir()
    program = tmp_path / "bin" / "virsh"
    program.parent.mkdir()
    program.write_text(VIRSH.format(directory=tmp_path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/sbin:/usr/bin:/sbin:/bin")
    return Virsh(tmp_path)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """All limits are short."""
    limits = {"SILENCE_S": 1.0, "THAW_SILENCE_S": 0.4, "REPLY_SILENCE_S": 1.5, "GREETING_S": 1.0, "GRACE_S": 0.1}
    for name, value in {**limits, "BEAT_S": 0.1}.items():
        monkeypatch.setattr(connection, name, value)


@pytest.fixture
def helper(virsh: Virsh, impatient: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """A connection to a helper on this host, without ssh."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    made = begin(["sh", "-c", command.bootstrap()])
    yield made
    made.close()


def begin(argv: list[str], check: Callable[[], None] = lambda: None) -> Connection:
    """A connection that has begun."""
    made = Connection(argv, host="hv1", try_first="ssh hv1 true")
    made.begin("qemu:///system", check=check)
    return made


@pytest.fixture
def fall_silent(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Have no more signs of life sent, and wait for none."""

    def fall_silent() -> None:
        monkeypatch.setattr(connection, "BEAT_S", 600.0)
        monkeypatch.setattr(connection, "REPLY_SILENCE_S", 600.0)

    return fall_silent


@pytest.fixture
def link(virsh: Virsh, impatient: None, tmp_path: Path) -> Iterator[Link]:
    """A link whose ssh runs the helper on this host."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.write_text(SSH)
    ssh.chmod(0o755)
    with Link(Address("hv1", "qemu:///system", user="root")) as made:
        yield made
