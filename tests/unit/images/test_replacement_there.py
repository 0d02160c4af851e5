"""An image of another host is replaced by the program of vbackup.images.replacement, which Python 3.6 runs there."""

from __future__ import annotations

import ast
import errno
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from vbackup.errors import RemoteError
from vbackup.images import replacement
from vbackup.images.replacement_there import ReplacementThere

ID = "20261123T101500Z-full"


class FakeLink:
    """Runs on this host what would run there, or answers with ``text``."""

    host = "root@hv1"

    def __init__(self, text: str | None = None) -> None:
        self.text = text

    def run(self, argv: Sequence[str], stdin: bytes, *, timeout_s: float) -> bytes:
        if self.text is not None:
            return self.text.encode()
        done = subprocess.run(argv, input=stdin, capture_output=True, check=False, timeout=timeout_s)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout


def there(path: Path, *, text: str | None = None) -> ReplacementThere:
    link: Any = FakeLink(text)
    return ReplacementThere(link, path, ID)


def test_all_steps_are_carried_out_there(tmp_path: Path) -> None:
    one = there(tmp_path / "it's \u00e4.qcow2")
    one.path.write_text("old")
    one.path.chmod(0o640)
    made = tmp_path / "made"
    made.write_text("new")
    assert one.barrier() is None
    one.check_attributes()
    one.adopt(made)
    assert (made.exists(), one.new.read_text()) == (False, "new")
    one.take_attributes()
    assert one.new.stat().st_mode & 0o777 == 0o640
    one.put()
    one.put()
    assert (one.path.read_text(), one.kept.read_text()) == ("new", "old")
    one.remove_old()
    one.new.write_text("another")
    one.discard()
    one.discard()
    assert [path.name for path in tmp_path.iterdir()] == [one.path.name]


def test_what_the_kernel_there_says_is_an_os_error(tmp_path: Path) -> None:
    one = there(tmp_path / "none" / "vda.qcow2")
    with pytest.raises(FileNotFoundError, match="No such file") as caught:
        one.check_attributes()
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"errno": "x", "text": 1}', json.dumps({"return": 1}), "[" * 9999])
def test_any_other_answer_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(RemoteError, match="root@hv1: the answer is"):
        there(tmp_path / "vda.qcow2", text=text).barrier()


def test_program_is_of_python_3_6_and_needs_nothing_else() -> None:
    tree = ast.parse(Path(replacement.__file__).read_text(), feature_version=(3, 6))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names])
    }
    assert imported <= sys.stdlib_module_names
    assert "__future__" not in imported
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword):
            assert node.arg not in {"missing_ok", "capture_output"}
        if isinstance(node, ast.FunctionDef):
            hints = [node.returns, *(one.annotation for one in node.args.args)]
            assert not any(isinstance(hint, (ast.Subscript, ast.BinOp)) for hint in hints), node.name
