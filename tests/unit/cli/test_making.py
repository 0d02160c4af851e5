"""Arguments of how a backup is made: what every command that makes one offers."""

from __future__ import annotations

from pathlib import Path

import pytest

from vbackup.cli import making, parser
from vbackup.errors import UsageError


@pytest.mark.parametrize("words", [["backup", "web"], ["stream", "backup", "web", "--job", "1"]])
def test_every_command_that_makes_backups_has_the_same_options(words: list[str]) -> None:
    options = parser.parse([*words, "--quiesce", "no", "--freeze-limit", "1m", "--disk", "vda", "--speed", "1M"])
    assert (options.quiesce, options.freeze_limit, options.disk, options.speed) == ("no", 60, ["vda"], 1024**2)
    with pytest.raises(UsageError, match="whole number of seconds"):
        parser.parse([*words, "--freeze-limit", "0.5"])


@pytest.mark.parametrize("inner", ["read", "finish"])
def test_stage_is_the_same_for_all_who_work_on_it(inner: str) -> None:
    """What a director's reader makes, its finish has to find."""
    more = ["--exit", "OK"] if inner == "finish" else []
    argv = ["engine", inner, "--domain", "web", "--job-id", "1", "--level", "Full", *more]
    assert parser.parse(argv).stage == making.STAGE == parser.parse(["stream", "commit", "web", "--job", "1"]).stage
    assert parser.parse([*argv, "--stage", "/s"]).stage == Path("/s")
