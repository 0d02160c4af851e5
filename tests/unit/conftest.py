"""Quick tests without QEMU. Hypothesis looks at fewer examples here than it could, and has no deadline."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.fake_qemu import FakeQemu
from tests.unit.builders import Recorder

settings.register_profile("unit", max_examples=50, deadline=None)
settings.load_profile("unit")


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def qemu() -> Iterator[FakeQemu]:
    """A QEMU without disks."""
    with FakeQemu() as made:
        yield made
