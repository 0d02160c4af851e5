"""What is asked of the state is what the options say, and the collector of cycles is back afterwards."""

from __future__ import annotations

import argparse
import gc
from typing import Any

import pytest

from tests.unit.overview.examples import facts
from vbackup import api
from vbackup.cli import overviews
from vbackup.cli.context import Context
from vbackup.overview import assess
from vbackup.stop import Stop


def options(**changes: Any) -> argparse.Namespace:
    values: dict[str, Any] = {
        "uris": ["qemu:///system"],
        "json": False,
        "repository": None,
        "config": None,
        "progress": "auto",
        "quiet": False,
        "jobs": ["nightly"],
        "max_age": 3600.0,
        "offline": True,
    }
    return argparse.Namespace(**{**values, **changes})


def test_options_become_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    overview = assess.overview(facts())

    def status(request: api.StatusRequest, **where: Any) -> api.Overview:
        asked.append((request, where, gc.isenabled()))
        return overview

    monkeypatch.setattr(api, "status", status)
    given = options(config="/etc/other.toml")
    assert overviews.found(given, Context(given, Stop())) is overview
    given = options(jobs=[], repository="/srv/backup")
    overviews.found(given, Context(given, Stop()))
    (first, second) = asked
    assert first[0] == api.StatusRequest(("nightly",), 3600.0, is_offline=True)
    assert first[1:] == ({"config": "/etc/other.toml"}, False)
    assert {name: str(value) for name, value in second[1].items()} == {
        "repository": "/srv/backup",
        "uris": "['qemu:///system']",
    }
    assert gc.isenabled()
