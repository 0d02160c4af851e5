"""Options become words of a command line that its parser reads as they were meant."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vbackup.cli import parser
from vbackup.config.arguments import argv


def test_flags_texts_and_lists() -> None:
    options = {"keep-daily": "7", "exclusive": True, "with-media": False, "disk": ("vda", "vdb")}
    assert argv("backup", options) == ["backup", "--keep-daily=7", "--exclusive", "--disk=vda", "--disk=vdb"]


def test_parser_reads_several_values_and_those_with_a_choice_of_its_own() -> None:
    options = {"disk": ("vda", "vdb"), "compress": "zstd", "scripts": "/s", "quiesce": "no", "full-every": "30d"}
    parsed = parser.parse([*argv("backup", options), "web"])
    assert parsed.disk == ["vda", "vdb"]
    assert parsed.domains == ["web"]
    assert (parsed.compress, parsed.quiesce, parsed.full_every) == ("zstd", "no", 30 * 86400)


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20))
def test_value_that_looks_like_an_option_is_none(text: str) -> None:
    assert parser.parse([*argv("copy", {"identity": (text,)}), "--all", "--to=/x"]).identities == [text]
