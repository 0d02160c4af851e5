"""The stock program age (Debian's package), which has to open what vbackup seals, and the other way round."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class KeyPair:
    """An identity file of age-keygen, and its recipient."""

    path: Path
    recipient: str


def key_pair(directory: Path, name: str = "key.txt") -> KeyPair:
    """Make a pair of keys."""
    path = directory / name
    subprocess.run(["age-keygen", "-o", path], check=True, capture_output=True)
    shown = subprocess.run(["age-keygen", "-y", path], check=True, capture_output=True, text=True)
    return KeyPair(path, shown.stdout.strip())


def opened(data: bytes, pair: KeyPair) -> bytes:
    """Return the content of an age file. Raises CalledProcessError if age does not open it."""
    return subprocess.run(["age", "-d", "-i", pair.path], input=data, check=True, capture_output=True).stdout


def sealed(data: bytes, *pairs: KeyPair) -> bytes:
    """Return an age file."""
    argv = ["age", *(word for pair in pairs for word in ("-r", pair.recipient))]
    return subprocess.run(argv, input=data, check=True, capture_output=True).stdout
