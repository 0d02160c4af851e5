"""A file that only vbackup's bitmaps were written to is known by its earlier states, and by no others."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from vbackup.domain import file_contents, own_writes
from vbackup.domain.own_writes import ATTRIBUTE, MAX_STATES, State

_NOW_NS = itertools.count(1_700_000_000_000_000_000, 1_000_000_000)


def write(path: Path, text: str) -> None:
    path.write_text(text)
    os.utime(path, ns=(0, next(_NOW_NS)))


def state(path: Path) -> State:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def write_bitmaps(path: Path, text: str, *, only_bitmaps: bool = True) -> None:
    with own_writes.recorded(only_bitmaps=only_bitmaps) as writes:
        writes.expect(str(path))
        write(path, text)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    write(path, "a")
    try:
        os.setxattr(path, ATTRIBUTE, b"[]")
        os.removexattr(path, ATTRIBUTE)
    except OSError:
        pytest.skip("a filesystem without extended attributes")
    return path


def test_earlier_states_are_known_over_several_writes(image: Path) -> None:
    states = [state(image)]
    for text in ("ab", "abc", "abcd"):
        write_bitmaps(image, text)
        assert own_writes.earlier(image, state(image)) == tuple(states)
        states.append(state(image))


def test_digest_that_was_known_stays_known_without_reading(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The states are those before the daemon opened the image, and after the note, which changes ctime."""
    calls = []
    monkeypatch.setattr(file_contents, "carry_over", lambda *arguments: calls.append(arguments))
    before = image.stat()
    write_bitmaps(image, "ab")
    assert calls == [(image, before, image.stat())]
    write_bitmaps(image, "x", only_bitmaps=False)
    with own_writes.recorded(only_bitmaps=True) as writes:
        writes.expect(str(image))
    assert len(calls) == 1


def test_write_of_somebody_else_ends_what_is_known(image: Path) -> None:
    write_bitmaps(image, "ab")
    write(image, "x")
    assert own_writes.earlier(image, state(image)) == ()
    foreign = state(image)
    write_bitmaps(image, "xy")
    assert own_writes.earlier(image, state(image)) == (foreign,)


def test_data_of_a_transaction_is_not_noted(image: Path) -> None:
    write_bitmaps(image, "ab", only_bitmaps=False)
    assert ATTRIBUTE not in os.listxattr(image)


def test_image_that_was_not_written_to_has_no_note(image: Path) -> None:
    with own_writes.recorded(only_bitmaps=True) as writes:
        writes.expect(str(image))
        writes.expect("/nonexistent/image")
        writes.expect("nbd://host/image")
        writes.expect(os.devnull)
    assert ATTRIBUTE not in os.listxattr(image)


def test_state_before_is_that_before_the_last_attempt_and_the_first_write(image: Path) -> None:
    with own_writes.recorded(only_bitmaps=True) as writes:
        writes.expect(str(image))
        write(image, "somebody else, who kept the daemon out")
        writes.expect(str(image))
        before = state(image)
        write(image, "one")
        writes.expect(str(image), is_open=True)
        write(image, "two")
    assert own_writes.earlier(image, state(image)) == (before,)


def test_number_of_states_is_limited(image: Path) -> None:
    for number in range(MAX_STATES + 3):
        write_bitmaps(image, "a" * (number + 2))
    assert len(own_writes.earlier(image, state(image))) == MAX_STATES - 1


@pytest.mark.parametrize("value", [b"", b"{", b"[1]", b"[[1]]", b'[["a", "b"]]', b"null", b"\xff", b"[" * 100_000])
def test_note_that_is_none_of_ours_is_ignored(image: Path, value: bytes) -> None:
    try:
        os.setxattr(image, ATTRIBUTE, value)
    except OSError:
        pytest.skip("too long for an attribute here")
    assert own_writes.earlier(image, state(image)) == ()
