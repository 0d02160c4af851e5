"""``vbackup restore --live``: what its options cannot be together, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.builders import UUID, backup_id, use_libvirt
from vbackup.domain import pools
from vbackup.operations import live_abort, live_restore, live_resume

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The requests that reach the operations, which do nothing."""
    requests: list[Any] = []
    images = {"vda": tmp_path / "vda.qcow2"}
    done = live_restore.LiveRestored(backup_id(1), "web", UUID, images, {"vda": backup_id(1)}, checkpoints=("vda",))
    aborted = live_abort.Aborted(backup_id(1), "web", UUID, (tmp_path / "vda.qcow2",))
    for module, answer in ((live_restore, done), (live_resume, done), (live_abort, aborted)):

        def run(request: Any, *, answer: Any = answer, **_more: Any) -> Any:
            requests.append(request)
            return answer

        monkeypatch.setattr(module, "run", run)
    use_libvirt(monkeypatch, None)
    return requests


def test_requests_and_results(command: Command, filled: Path, tmp_path: Path, asked: list[Any]) -> None:
    words = ("restore", "web", "-r", filled, "--output", tmp_path, "--live")
    assert str(tmp_path / "vda.qcow2") in command(*words, "--speed", "1M").stdout
    assert (asked[0].domain, asked[0].output, asked[0].speed_bytes_s) == (UUID, tmp_path, 1 << 20)
    done = command(*words, "--resume", "--json").document
    assert (done["schema"], done["state"], done["id"]) == ("vbackup.liverestore/1", "home", backup_id(1))
    assert done["disks"] == [
        {
            "dev": "vda",
            "file": str(tmp_path / "vda.qcow2"),
            "format": "qcow2",
            "backup": backup_id(1),
            "checkpoint": True,
        }
    ]
    command(*words, "--abort")
    aborted = command(*words, "--abort", "--yes", "--json").document
    assert [one.is_confirmed for one in asked[2:]] == [False, True]
    assert (aborted["state"], aborted["removed"]) == ("aborted", [str(tmp_path / "vda.qcow2")])
    assert command("-q", *words).stdout == ""


def test_new_domain_and_other_places_for_disks(
    command: Command, filled: Path, tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[str] = []
    monkeypatch.setattr(pools, "opened", lambda _host, name: looked_up.append(name))
    words = ("restore", "web", "-r", filled, "--output", tmp_path, "--live", "--no-checkpoint")
    command(*words, "--name", "new", "--disk", "vda=/images/a.qcow2", "vdb", "--pool", "default")
    (request,) = asked
    assert (request.name, request.wanted.disks, request.checkpoint) == ("new", ("vda", "vdb"), False)
    assert (request.destinations, looked_up) == ({"vda": Path("/images/a.qcow2")}, ["default"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--resume",), "with --live"),
        (("--abort",), "with --live"),
        (("--yes",), "with --live"),
        (("--live", "--yes"), "--yes is for --abort"),
        (("--live", "--resume", "--abort"), "one of --resume and --abort"),
        (("--live", "--format", "raw"), "--format cannot be given with --live"),
        (("--live", "--define"), "--define cannot be given with --live"),
        (("--live", "--start"), "--start cannot be given with --live"),
        (("--live", "--keep-old"), "--keep-old cannot be given with --live"),
        (("--live", "--exclusive"), "--exclusive cannot be given with --live"),
        (("--live", "--resume", "--backup", backup_id(1)), "take no backup"),
        (("--live", "--resume", "--name", "new"), "--name cannot be given with --resume or --abort"),
        (("--live", "--resume", "--disk", "vda=/a"), "--disk cannot be given with --resume or --abort"),
        (("--live", "--abort", "--pool", "default"), "--pool cannot be given with --resume or --abort"),
        (("--live", "--resume", "--no-checkpoint"), "--no-checkpoint cannot be given with --resume or --abort"),
    ],
)
def test_what_does_not_fit_together_is_status_two(
    command: Command, filled: Path, tmp_path: Path, asked: list[Any], options: tuple[str, ...], message: str
) -> None:
    said = command("restore", "web", "-r", filled, "--output", tmp_path, *options, status=2).stderr
    assert message in said
    assert asked == []


def test_it_is_not_for_a_restore_in_place(command: Command, filled: Path, asked: list[Any]) -> None:
    assert (
        "--in-place cannot be given" in command("restore", "web", "-r", filled, "--in-place", "--live", status=2).stderr
    )
    assert asked == []
