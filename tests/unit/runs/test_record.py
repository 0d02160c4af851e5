"""The words of a run are those of its schema, in the order of its steps."""

from __future__ import annotations

from typing import Any

from vbackup import schemas
from vbackup.runs.record import Outcome, StepKind


def words(member: dict[str, Any]) -> list[str]:
    return next(each["enum"] for each in member["anyOf"] if "enum" in each)


def test_words_are_those_of_the_schema() -> None:
    schema = schemas.load("vbackup.run/1")
    definitions = schema["$defs"]
    step = schema["properties"]["steps"]["items"]["properties"]
    assert words(definitions["run_outcome"]) == [each.value for each in Outcome]
    assert words(step["kind"]) == [each.value for each in StepKind]
