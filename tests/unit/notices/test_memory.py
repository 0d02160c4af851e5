"""The memory of a notifier is a private file, is locked while somebody uses it, and is never in the way."""

from __future__ import annotations

import logging
import stat
import threading
import time
from pathlib import Path

import pytest

from vbackup.errors import StorageError
from vbackup.notices.memory import Memory
from vbackup.notices.told import Told

TOLD = Told(unsent=("The clock jumped.",))


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(tmp_path / "state")


def test_nothing_was_told_before_the_first_message(memory: Memory) -> None:
    assert memory.read("ops") == Told()
    assert not memory.state.exists()


def test_what_was_told_is_kept_for_each_notifier_in_a_private_file(memory: Memory) -> None:
    memory.keep("ops", TOLD)
    assert memory.read("ops") == TOLD
    assert memory.read("other") == Told()
    assert stat.S_IMODE(memory.path("ops").stat().st_mode) == 0o600
    assert stat.S_IMODE(memory.path("ops").parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "a\nb", "..", "Müller"])
def test_name_of_a_notifier_leads_nowhere_else(memory: Memory, name: str) -> None:
    memory.keep(name, TOLD)
    assert memory.read(name) == TOLD
    assert [path.parent for path in memory.state.rglob("*.json")] == [memory.state / "notices"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"[]", b'{"failures": 1}'])
def test_broken_memory_counts_as_empty(memory: Memory, content: bytes) -> None:
    memory.keep("ops", TOLD)
    memory.path("ops").write_bytes(content)
    assert memory.read("ops") == Told()
    memory.keep("ops", TOLD)
    assert memory.read("ops") == TOLD


def test_directory_that_others_can_write_to_is_refused(memory: Memory) -> None:
    memory.keep("ops", TOLD)
    memory.path("ops").parent.chmod(0o777)
    with pytest.raises(StorageError, match="Others can replace"):
        memory.keep("ops", TOLD)


def test_second_run_waits_for_the_first(memory: Memory) -> None:
    order: list[str] = []
    has_lock = threading.Event()

    def first() -> None:
        with memory.locked("ops", wait_s=5):
            has_lock.set()
            time.sleep(0.3)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert has_lock.wait(5)
    with memory.locked("ops", wait_s=5):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_run_goes_on_without_a_lock_that_is_not_free_in_time(memory: Memory, caplog: pytest.LogCaptureFixture) -> None:
    begun = time.monotonic()
    with caplog.at_level(logging.WARNING), memory.locked("ops", wait_s=5), memory.locked("ops", wait_s=0.2):
        pass
    assert time.monotonic() - begun < 3
    assert "this one goes on" in caplog.text


def test_run_goes_on_where_nothing_can_be_locked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "state").write_text("a file")
    with caplog.at_level(logging.WARNING), Memory(tmp_path / "state").locked("ops", wait_s=1):
        pass
    assert "Cannot lock" in caplog.text
