"""The program answers one word on standard output, and writes nothing else, whatever apprise does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vbackup.notices import apprise_program

PROGRAM = Path(apprise_program.__file__)
MODULE = """
import logging, sys

class NotifyFormat:
    TEXT = "text"

class Apprise:
    def add(self, url):
        print(url)
        logging.error(url)
        return "bad" not in url

    def notify(self, **message):
        print(message, file=sys.stderr)
        return message["title"] == "good"
"""


@pytest.mark.parametrize(
    ("url", "title", "answer"),
    [
        ("json://x", "good", apprise_program.SENT),
        ("json://x", "poor", apprise_program.FAILED),
        ("bad://x", "good", apprise_program.UNKNOWN),
    ],
)
def test_answer_is_all_that_is_written(tmp_path: Path, url: str, title: str, answer: str) -> None:
    (tmp_path / "apprise.py").write_text(MODULE)
    orders = {"sys_path": [str(tmp_path), *sys.path], "url": url, "title": title, "text": "", "type": "info"}
    done = subprocess.run(
        [sys.executable, "-I", str(PROGRAM)], input=json.dumps(orders), capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == (answer, "")
