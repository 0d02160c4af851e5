"""Sizes, tables and trees for people: nothing is cut, and names do not steer the terminal."""

from __future__ import annotations

import io
import os
import pty
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress

import pytest

from vbackup.cli import output


def test_table_has_no_escape_codes_and_cuts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "checkpoint 20261123T101500Z-full is inconsistent (QEMU did not close the image) " * 2
    output.table(("DISK", "SIZE", "WHY"), [("vda", "1 B", reason), ("[red]vdb", "100 B", "[/]")])
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert reason.strip() in text
    assert "[red]vdb" in text
    assert "[/]" in text


@contextmanager
def stdout_on_a_terminal(monkeypatch: pytest.MonkeyPatch, *, columns: int) -> Iterator[list[str]]:
    """What is printed in the block goes to a terminal; its lines are in the list afterwards."""
    controller, terminal = pty.openpty()
    monkeypatch.setenv("COLUMNS", str(columns))
    lines: list[str] = []
    with os.fdopen(terminal, "w") as stream, redirect_stdout(stream):
        yield lines
    pieces = []
    # The terminal is closed by now; what it was given comes in pieces.
    with suppress(OSError):
        while piece := os.read(controller, 65536):
            pieces.append(piece)
    os.close(controller)
    lines += b"".join(pieces).decode().split("\r\n")


def test_last_column_is_folded_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    with stdout_on_a_terminal(monkeypatch, columns=40) as lines:
        output.table(("DISK", "SIZE", "WHY"), [("vda", "1 B", "word " * 12), ("vdb", "100 B", "short")])
    assert lines[0] == "\x1b[1mDISK   SIZE  WHY\x1b[0m"
    assert lines[1:] == [
        "vda     1 B  word word word word word",
        "             word word word word word",
        "             word word",
        "vdb   100 B  short",
        "",
    ]


def test_blank_text_that_is_too_long_is_an_empty_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    with stdout_on_a_terminal(monkeypatch, columns=40) as lines:
        output.table(("DISK", "WHY"), [("vda", " " * 100)])
    assert lines[1:] == ["vda", ""]


def test_terminal_that_is_too_narrow_cuts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with stdout_on_a_terminal(monkeypatch, columns=5) as lines:
        output.table(("ID", "WHY"), [("20261123T101500Z-incremental", "as it was asked for by the user")])
    assert "".join(lines[1:]).replace(" ", "") == "WHY20261123T101500Z-incrementalasitwasaskedforbytheuser"


def test_word_that_does_not_fit_gets_a_line_to_copy_it_from(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "vbackup-0123456789ab-20261123T101500Z-incremental-vda-0123456789ab"
    with stdout_on_a_terminal(monkeypatch, columns=80) as lines:
        output.table(("DISK", "OWNER", "BITMAP"), [("vda", "vbackup", name), ("vdb", "foreign", "short")])
    assert lines[1:] == ["vda   vbackup", f"    {name}", "vdb   foreign  short", ""]


def test_name_that_leaves_no_room_for_the_other_columns_has_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    name, headings = "a-name-" * 5, ("DOMAIN", "NEWEST", "STATE")
    rows = [("web", "2026-11-23 10:15", "ok"), (name, "2026-11-23 10:15", "1 broken"), ("database", "-", "ok")]
    with stdout_on_a_terminal(monkeypatch, columns=40) as lines:
        output.table(headings, rows)
    assert lines[0] == "\x1b[1mDOMAIN    NEWEST            STATE\x1b[0m"
    assert lines[1:] == [
        "web       2026-11-23 10:15  ok",
        name,
        "          2026-11-23 10:15  1 broken",
        "database  -                 ok",
        "",
    ]


def test_last_column_has_lines_of_its_own_where_the_others_leave_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    host = "hypervisor-17.example.com"
    with stdout_on_a_terminal(monkeypatch, columns=40) as lines:
        output.table(("ID", "HOST", "DISKS"), [("1234567", host, "vda vdb vdc (without vdd vde vdf vdg vdh vdi)")])
    assert lines[1:] == [
        "    DISKS",
        f"1234567  {host}",
        "    vda vdb vdc (without vdd vde vdf vdg",
        "    vdh vdi)",
        "",
    ]
    assert max(map(len, lines[1:])) <= 40


def test_text_after_a_label_is_folded_below_itself_and_a_path_can_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/var/lib/libvirt/images/a/deep/directory"
    with stdout_on_a_terminal(monkeypatch, columns=30) as lines:
        output.labelled("Left out: ", "hda (a cdrom, which holds no data)")
        output.labelled("Directory: ", path)
        output.labelled("Level: ", "")
    assert lines == [
        "Left out: hda (a cdrom, which",
        "          holds no data)",
        "Directory:",
        f"    {path}",
        "Level:",
        "",
    ]


def test_text_after_a_label_is_one_line_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    output.labelled("Left out: ", "word " * 40 + "\x1b")
    assert capsys.readouterr().out == "Left out: " + "word " * 40 + "\\x1b\n"


def test_columns_stay_in_line_beside_wide_characters(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("NAME", "WHY"), [("\u5099\u4efd", "x"), ("e\u0301te", "y"), ("web", "z")])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["NAME  WHY", "\u5099\u4efd  x", "e\u0301te   y", "web   z"]


def test_tree_draws_branches_and_a_chain_of_any_length(capsys: pytest.CaptureFixture[str]) -> None:
    output.tree([("a", None, "A"), ("b", "a", "B"), ("c", "b", "C"), ("d", "a", "D"), ("e", "gone", "E")])
    assert capsys.readouterr().out.splitlines() == ["A", "├─ B", "│  ↑ C", "└─ D", "E"]
    long = [(str(number), str(number - 1), "one") for number in range(1, 1500)]
    output.tree(long)
    assert capsys.readouterr().out.splitlines() == ["one"] + ["↑ one"] * (len(long) - 1)


def test_branches_inside_a_branch_keep_their_guides(capsys: pytest.CaptureFixture[str]) -> None:
    output.tree(
        [
            (key, parent, key)
            for key, parent in [("a", None), ("b", "a"), ("c", "b"), ("d", "c"), ("e", "c"), ("f", "a")]
        ]
    )
    assert capsys.readouterr().out.splitlines() == ["a", "├─ b", "│  ↑ c", "│  ├─ d", "│  └─ e", "└─ f"]


def test_tree_without_unicode_has_plain_guides(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    output.tree([("a", None, "A"), ("b", "a", "B"), ("c", "a", "C")])
    assert raw.getvalue().decode().splitlines() == ["A", "+- B", "`- C"]
