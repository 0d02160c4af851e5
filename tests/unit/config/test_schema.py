"""Editors find the same faults as vbackup: unknown keys, wrong types and words."""

from __future__ import annotations

from typing import Any

import pytest
import tomllib
from hypothesis import given, settings
from jsonschema import Draft7Validator

from tests.unit.config.conftest import Load
from tests.unit.config.test_loading import WHOLE
from tests.unit.config.test_writing import configs
from vbackup.config import keys, schema, writing
from vbackup.config.model import Config

VALIDATOR = Draft7Validator(schema.schema())
MAIN = "[repository.main]\npath = '/r'\n"


def faults(text: str) -> list[str]:
    return [one.message for one in VALIDATOR.iter_errors(tomllib.loads(text))]


def test_it_is_a_schema_of_its_draft() -> None:
    Draft7Validator.check_schema(schema.schema())


def test_whole_configuration_is_valid() -> None:
    assert faults(WHOLE) == []


@given(configs())
@settings(deadline=None, max_examples=40)
def test_whatever_vbackup_accepts_is_valid(config: Config) -> None:
    assert faults(writing.toml(config)) == []


@pytest.mark.parametrize(
    "text",
    [
        "[jobs.a]\n",
        "[repository.main]\n",
        "[repository.main]\npath = 'relative'\n",
        "[repository.'a b']\npath = '/r'\n",
        MAIN + "[job.a.prune]\nkeep-dayly = 7\n",
        MAIN + "[job.a.prune]\nkeep-daily = '7d'\n",
        MAIN + "[job.a.prune]\nkeep-daily = 0\n",
        MAIN + "[job.a.backup]\nlevel = 'fulll'\n",
        MAIN + "[job.a.backup]\ngroup = 'yes'\n",
        MAIN + "[job.a]\nat = '25:00'\n",
        MAIN + "[job.a]\nat = []\n",
        MAIN + "[job.a]\nat = '01:00'\non = ['saturday']\n",
        MAIN + "[job.a]\nwindow = '22:00'\n",
        "[notify.a]\nping = 'https://x'\n",
        "[notify.a]\nping = {}\n",
        "[notify.a]\nping = {file = '/a', credential = 'b'}\n",
        "[notify.a]\nmail-to = 'x'\nwhen = 'sometimes'\n",
        "[metrics]\nfile = '/x'\n",
    ],
)
def test_what_vbackup_refuses_is_not_valid(load: Load, text: str) -> None:
    assert load(text).faults
    assert faults(text)


def test_every_key_has_its_help() -> None:
    def described(value: Any) -> None:
        for name, one in value.get("properties", {}).items():
            assert one["description"], name
            described(one)

    found = schema.schema()
    described(found)
    job = found["properties"]["job"]["additionalProperties"]["properties"]
    assert job["backup"]["properties"]["parallel"]["description"].endswith("Default: 4.")
    assert set(job) == {key.name for key in keys.JOB} | set(keys.JOB_COMMANDS)
