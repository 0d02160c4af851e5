"""A guestfish for tests: it parses lines as guestfish does, and answers from a table instead of an appliance.

``write`` makes an executable of it. Its table is Python: what each command prints, writes to its file, or fails with.
"""

from __future__ import annotations

import sys
from pathlib import Path

_SCRIPT = r"""#!{python} -IS
import os, re, sys, time

ANSWERS = {answers!r}
WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"|(\S+)')
log = open({log!r}, "ab", buffering=0)


def unescaped(data):
    return re.sub(rb"\\x([0-9a-f]{{2}})", lambda match: bytes([int(match[1], 16)]), data)


for number, line in enumerate(sys.stdin.buffer, 1):
    assert len(line) < 8192, "fgets"
    name, _, rest = line.strip().lstrip(b"-").partition(b" ")
    words = [unescaped(match[1]) if match[1] is not None else match[2] for match in WORD.finditer(rest)]
    if name == b"echo":
        sys.stdout.buffer.write(b" ".join(words) + b"\n")
        sys.stdout.buffer.flush()
        continue
    log.write(repr((name.decode(), *map(os.fsdecode, words))).encode() + b"\n")
    files = [word for word in words if b"/vbackup-scratch-" in word and b"/stream" in word]
    key = (name.decode(), *(os.fsdecode(word) for word in words if word not in files))
    answer = ANSWERS.get(key, ANSWERS.get(key[0], ""))
    if key[0] == "cryptsetup-open":
        log.write(repr(sys.stdin.buffer.readline()).encode() + b"\n")
    if isinstance(answer, Exception):
        text = answer.args[0]
        if text == "hang":
            time.sleep(600)
        if text.startswith("with KVM: ") and os.environ.get("LIBGUESTFS_BACKEND_SETTINGS") == "force_tcg":
            continue
        if text == "die":
            os.write(2, b"it is over\n")
            sys.exit(1)
        os.write(2, ("*stdin*:%d: libguestfs: error: %s\n" % (number, text)).encode())
    elif files:
        with open(files[0], "wb") as file:
            file.write(answer)
    else:
        sys.stdout.buffer.write(os.fsencode(answer))
        sys.stdout.buffer.flush()
"""


class FakeGuestfish:
    """The program in a directory that belongs in front of PATH, and what it was told."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.path = directory / "guestfish"
        self._log = directory / "guestfish.log"
        self.answers: dict[object, object] = {}
        self.write()

    def answer(self, command: str, *words: str, with_: object) -> None:
        """Set what a command answers: text, bytes for its file, or an Exception with libguestfs's words."""
        self.answers[(command, *words) if words else command] = with_
        self.write()

    def write(self) -> None:
        self.path.write_text(_SCRIPT.format(python=sys.executable, answers=self.answers, log=str(self._log)))
        self.path.chmod(0o755)
        self._log.touch()

    def told(self) -> list[str]:
        """The commands, each as the repr of its words; a secret as that of a line of bytes."""
        return self._log.read_text().splitlines()
