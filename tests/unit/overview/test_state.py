"""Health is numbered as plugins of Nagios number it, so that the worst is the largest."""

from __future__ import annotations

from vbackup.overview.state import Health


def test_numbers_are_those_of_nagios() -> None:
    assert [int(one) for one in (Health.OK, Health.WARNING, Health.CRITICAL, Health.UNKNOWN)] == [0, 1, 2, 3]
    assert max(Health.OK, Health.CRITICAL, Health.WARNING) is Health.CRITICAL
