"""Arguments that several commands share: where they may stand, and what names a domain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.builders import backup

if TYPE_CHECKING:
    from tests.conftest import Command


ONE = backup(1)


@pytest.mark.parametrize(
    "arguments", [("-q", "list"), ("list", "-q"), ("-c", "x:///", "list"), ("list", "-c", "x:///")]
)
def test_common_options_stand_before_or_behind_the_command(
    command: Command, filled: Path, arguments: tuple[str, ...]
) -> None:
    assert ONE.id in command(*arguments, "-r", filled).stdout
