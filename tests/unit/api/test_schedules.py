"""Programs can install, show and remove schedules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.unit.notices.runs import config
from vbackup import api


def test_schedule_comes_and_goes(tmp_path: Path) -> None:
    request = api.ScheduleRequest(root=tmp_path, way=api.ScheduleWay.SYSTEMD)
    installed = api.install_schedule(config(), request)
    assert [one.name for one in installed.jobs] == ["nightly"]
    assert api.show_schedule(config(), request).jobs[0].state is api.ScheduleState.INSTALLED
    removed = api.remove_schedule(replace(request, jobs=("nightly",)))
    assert removed.jobs[0].state is api.ScheduleState.ABSENT
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
