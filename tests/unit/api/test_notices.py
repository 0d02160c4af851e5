"""Programs can list notifiers, try them, and tell what is overdue."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.notices.runs import PLACE, USUAL, config, domain, overview
from tests.web import web
from vbackup import api
from vbackup.config.model import Notifier, Secret
from vbackup.errors import UsageError


def test_what_is_overdue_is_told_once_and_listed(tmp_path: Path) -> None:
    secret = tmp_path / "url"
    with web() as server:
        secret.write_text(f"{server.url}/x\n")
        secret.chmod(0o600)
        configuration = config(Notifier("ops", PLACE, USUAL, webhook=Secret(file=secret), timeout_s=5))
        late = overview(domain("web", is_overdue=True))
        for _ in range(2):
            assert api.tell_overdue(late, configuration, state=tmp_path / "state") == ()
        assert len(server.asked) == 1
        assert api.send_test_notices(configuration) == {"ops": None}
        assert len(server.asked) == 2
    (ops,) = api.notifiers(configuration, state=tmp_path / "state")
    assert ops.title is not None
    assert ops.title.endswith("OVERDUE: web")
    with pytest.raises(UsageError, match="No notifier"):
        api.send_test_notices(configuration, ["other"])
