"""The entries of a QMP schema become types; a malformed one is refused when it is needed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.qapi.schemas import members, schema
from vbackup.errors import MalformedError
from vbackup.qapi.schema import Schema


@pytest.mark.parametrize(
    "types",
    [
        {},
        {"a": members("m:nothing")},
        {"a": members("m:c")},
        {"a": {"meta-type": "object"}},
        {"a": {"meta-type": "object", "members": [{}]}},
        {"a": {"meta-type": "object", "members": [{"name": "m"}]}},
        {"a": {"meta-type": "object", "members": "x"}},
        {"a": {"meta-type": "surprise"}},
        {"a": members("m:b"), "b": {"meta-type": "builtin", "json-type": "surprise"}},
        {"a": members("m:b"), "b": {"meta-type": "enum"}},
        {"a": members("m:b"), "b": {"meta-type": "enum", "values": [1]}},
        {"a": members("m:b"), "b": {"meta-type": "array"}},
        {"a": members("m:b"), "b": {"meta-type": "alternate"}},
        {"a": members("m:b"), "b": {"meta-type": "alternate", "members": [{"type": "b"}]}},
        {"a": members("m:string", tag="x", variants=[])},
        {"a": members("m:string", tag="m", variants=[])},
        {"a": members("m:string", tag="m")},
        {
            "a": members("m:e", tag="m", variants=[{"case": "x", "type": "a"}]),
            "e": {"meta-type": "enum", "values": ["x"]},
        },
        {
            "a": members("m:e", tag="m", variants=[{"case": "x", "type": "e"}]),
            "e": {"meta-type": "enum", "values": ["x"]},
        },
        {"a": members("m:string", features="x")},
    ],
    ids=str,
)
def test_broken_schema_is_malformed(types: Any) -> None:
    broken = schema(**types)
    with pytest.raises(MalformedError):
        broken.check("c", {"m": "x"})


@pytest.mark.parametrize("reply", [None, {}, [1], [{}], [{"name": 1}], [{"name": "x", "meta-type": "enum"}] * 2])
def test_reply_that_is_no_schema_is_malformed(reply: Any) -> None:
    with pytest.raises(MalformedError):
        Schema(reply)
