"""Whatever moment ``vbackup forget`` is cut off at, no base is left that a backup would trust wrongly."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.builders import Recorder
from tests.unit.fake_domain import FakeDomain, run
from vbackup import names
from vbackup.domain.offline import OffSource
from vbackup.errors import QmpError
from vbackup.operations import forget
from vbackup.operations.forget import ForgetRequest
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


def test_checkpoints_go_before_their_end_marks(domain: FakeDomain, repo: Repository) -> None:
    run(domain, repo)
    done = forget.run(
        ForgetRequest("web", repo.id),
        host=domain,  # type: ignore[arg-type]
        repository=repo,
        reporter=Recorder(),
        stop=Stop(),
    )
    removed = [
        (one.arguments["node"], names.parse_end_mark(one.arguments["name"]) is not None)
        for one in domain.qemu.sent
        if one.command == "block-dirty-bitmap-remove"
    ]
    nodes = dict.fromkeys(node for node, _ in removed)
    assert len(nodes) == 2
    assert removed[-4:] == [(node, is_mark) for node in nodes for is_mark in (False, True)]
    assert [(claim.dev, claim.checkpoint is None) for claim in done.removed] == [
        (dev, is_mark) for dev in ("vda", "vdb") for is_mark in (False, True)
    ]


def test_what_qemu_keeps_is_named_with_the_way_out(domain: FakeDomain, repo: Repository) -> None:
    run(domain, repo)
    (checkpoint,) = domain.bitmaps()["vda"]
    execute = domain.qemu.execute

    def refuse(command: str, arguments: Any = None, *, fd: int | None = None) -> Any:
        if command == "block-dirty-bitmap-remove" and arguments["name"] == checkpoint:
            raise QmpError(command, "GenericError", "Bitmap is busy.")
        return execute(command, arguments, fd=fd)

    domain.qemu.execute = refuse  # type: ignore[method-assign]
    recorder = Recorder()
    done = forget.run(
        ForgetRequest("web", repo.id),
        host=domain,  # type: ignore[arg-type]
        repository=repo,
        reporter=recorder,
        stop=Stop(),
    )
    assert [(kept.claim.name, kept.reason) for kept in done.kept] == [(checkpoint, "Bitmap is busy")]
    assert len(done.removed) == 3
    (warning,) = recorder.warnings
    assert warning.startswith(
        f"Disk vda: bitmap {checkpoint} on /images/vda.qcow2 stays: Bitmap is busy. It does no harm"
    )
    assert warning.endswith("to remove it, run the same command again when nothing else uses the image.")


def test_image_that_another_host_may_have_is_left_with_one_way_out(
    domain: FakeDomain, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(domain, repo)
    before, recorder = domain.bitmaps(), Recorder()
    domain.is_off = True
    why = "its image /images/vda.qcow2 is only read; if this host alone uses it, --exclusive lets vbackup write to it"
    monkeypatch.setattr(OffSource, "reason_not_to_write", lambda _source, _layer: why)
    request = ForgetRequest("web", repo.id)
    done = forget.run(request, host=domain, repository=repo, reporter=recorder, stop=Stop())  # type: ignore[arg-type]
    assert (done.removed, domain.bitmaps()) == ((), before)
    assert recorder.warnings
    assert all(
        warning.endswith("They do no harm; to remove them, run the same command again with it.")
        for warning in recorder.warnings
    ), recorder.warnings
