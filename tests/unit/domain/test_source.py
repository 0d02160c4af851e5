"""A domain is opened as it is, and what keeps a disk from being opened is told with the way out."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.builders import Recorder
from vbackup.domain.source import open_source
from vbackup.errors import UnsuitableError


def test_domain_on_another_host_is_not_opened_here(domain: Any) -> None:
    domain.is_local = False
    with pytest.raises(UnsuitableError, match="run vbackup on that host"), open_source(domain, reporter=Recorder()):
        pass
