"""The user's scripts before a restore get a plan of it, and can stop it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import UUID, Recorder, backup
from vbackup.errors import ScriptError
from vbackup.operations import restore_scripts
from vbackup.operations.restore_scripts import Way
from vbackup.repository.choice import Choice
from vbackup.repository.chosen import Chosen
from vbackup.repository.repository import Repository
from vbackup.scripts.runner import DomainScripts, Settings
from vbackup.stop import Stop

ONE = backup(1)
POINT = Chosen(Choice(ONE, {"vda": ONE, "vdb": ONE}, (), ()), {})


def given(directory: Path, text: str, repo: Repository, **more: Any) -> list[str]:
    """What a script in the directory printed."""
    script = directory / "pre-restore.d" / "x"
    script.parent.mkdir(mode=0o755, parents=True)
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)
    recorder = Recorder()
    scripts = DomainScripts(Settings(directory), reporter=recorder, stop=Stop(), work="restore", domain="web")
    restore_scripts.know(scripts, ONE, repository=repo, uri=None, output=Path("/out"))
    restore_scripts.before(scripts, POINT, Way.NEW, **more)
    return [line.removeprefix("pre-restore script x: ") for line in recorder.steps]


def test_plan_names_the_backup_and_where_its_disks_go(tmp_path: Path, repo: Repository) -> None:
    files = {"vda": Path("/out/vda.qcow2")}
    [line] = given(tmp_path / "scripts.d", "cat", repo, output=Path("/out"), files=files, name="new")
    assert json.loads(line) == {
        "schema": "vbackup.restoreplan/1",
        "id": ONE.id,
        "time": "2026-11-23T13:00:00.000000Z",
        "domain": {"name": "web", "uuid": UUID},
        "way": "new",
        "output": "/out",
        "name": "new",
        "disks": [
            {"dev": "vda", "backup": ONE.id, "file": "/out/vda.qcow2"},
            {"dev": "vdb", "backup": ONE.id, "file": None},
        ],
    }


def test_environment_is_of_the_backup(tmp_path: Path, repo: Repository) -> None:
    text = "echo $VBACKUP_WORK $VBACKUP_PHASE $VBACKUP_BACKUP_ID $VBACKUP_LEVEL $VBACKUP_OUTPUT $VBACKUP_REPOSITORY"
    assert given(tmp_path / "scripts.d", text, repo) == [f"restore pre-restore {ONE.id} full /out {repo.path}"]


def test_failure_stops_the_restore(tmp_path: Path, repo: Repository) -> None:
    with pytest.raises(ScriptError, match=r"ended with exit status 1\. Nothing was restored or changed\."):
        given(tmp_path / "scripts.d", "exit 1", repo)
