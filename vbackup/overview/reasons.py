"""What the judges of domains, jobs and repositories have in common: reasons, and times in words. Does no I/O."""

from __future__ import annotations

from datetime import datetime

from vbackup.overview.state import Health
from vbackup.runs import due

#: A clock may differ by so much from that of the host, or the run, that made a backup.
SLACK = due.AHEAD
_HOUR_S, _DAY_S = 3600, 86400
#: Up to here, ages are told in hours: what is promised is 26 h, not "1 d".
_HOURS = 72


class Reasons:
    """Collects why something is not OK."""

    def __init__(self) -> None:
        self.health, self.sentences = Health.OK, list[str]()

    def add(self, health: Health, sentence: str) -> None:
        """Add a sentence."""
        self.health = max(self.health, health)
        self.sentences.append(sentence)


def moment(time: datetime) -> str:
    """Return a time in the system's zone, to the minute."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M")


def span(elapsed_s: float) -> str:
    """Return a time in words: 40 min, 26 h, 9 d."""
    if elapsed_s < _HOUR_S:
        return f"{elapsed_s / 60:.0f} min"
    if elapsed_s < _HOURS * _HOUR_S:
        return f"{elapsed_s / _HOUR_S:.0f} h"
    return f"{elapsed_s / _DAY_S:.0f} d"
