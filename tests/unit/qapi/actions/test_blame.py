"""An error of QEMU is blamed on the one action that it fits, or on none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import JSON, TEXT
from vbackup.qapi.actions import blame

ADD = {"type": "block-dirty-bitmap-add", "data": {"node": "n", "name": "b"}}
BACKUP = {"type": "blockdev-backup", "data": {"device": "n", "target": "t", "sync": "full", "job-id": "j"}}


@pytest.mark.parametrize(
    ("given", "description", "blamed"),
    [
        ([ADD], "Parameter 'actions[7].data.name' is missing", None),
        ([ADD, ADD], "Bitmap already exists: b", None),
        ([BACKUP, ADD], "Bitmap already exists: b", 1),
        ([ADD, BACKUP], "Job ID 'j' already in use", 1),
        ([ADD, BACKUP], "Node 't' is busy: block device is in use by block job: backup", 1),
        ([BACKUP, ADD], "Cannot find device='n' nor node-name='n'", None),
        ([ADD, {**BACKUP, "data": {**BACKUP["data"], "device": "m"}}], "Cannot find device='m' nor node-name='m'", 1),
        ([ADD, BACKUP], "something about 't' that is not known here", 1),
        ([ADD, BACKUP], "something about 'x' that is not known here", None),
        ([ADD, BACKUP], "Input/output error", None),
        ([], "Transaction aborted using Abort action", None),
        ([BACKUP], "", None),
    ],
)
def test_error_is_blamed_on_the_only_action_that_fits(given: Any, description: str, blamed: int | None) -> None:
    assert blame.failing_index(given, description) == blamed


@given(st.lists(JSON.filter(lambda value: isinstance(value, dict))), TEXT | st.just("Bitmap 'x' is busy"))
def test_blame_takes_anything(given_actions: Any, description: str) -> None:
    index = blame.failing_index(given_actions, description)
    assert index is None or 0 <= index < len(given_actions)
