"""Notice that a backup's changes are unlike those of the earlier ones: much more of them, or no longer compressible.

Both together are what ransomware looks like from outside; much more zeros are what fstrim looks like. An incremental is
compared with the incrementals of the same disk before it, of which there have to be some: a full says nothing about
changes, and a differential grows by itself. The median of the latest counts, so that one exception among them does not,
and nothing is unusual that has happened before. A longer time since the base excuses proportionally more.

The verdict is for people: it never makes a backup fail. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from vbackup.amounts import size
from vbackup.model import Backup, ChangeRecord, DiskImage, Level

#: How many incrementals of the disk there have to be for a verdict, and how many of the latest make the usual amount.
MIN_BACKUPS, BACKUPS = 5, 30
#: Nothing is unusual that has happened in one of this many incrementals: weekly work, between hourly backups.
REMEMBERED = 200
#: Unusual is this many times the median...
TIMES = 4
#: ...and at least this much: small disks have large ratios.
MIN_BYTES = 8 * 1024 * 1024
#: Data does not compress if this much of it is left, and it does so unusually if it was this much less before.
INCOMPRESSIBLE_PERCENT, STEP_PERCENT = 90, 20
#: The least that has to be sampled of the data of a backup for that.
MIN_SAMPLED_BYTES = 8 * 4096
#: A time since the base that excuses nothing: what happens within an hour is no matter of the schedule.
MIN_INTERVAL_S = 3600.0
#: An amount that no other is compared with in words.
LITTLE_BYTES = 1024 * 1024
#: The thresholds in words.
THRESHOLDS = (
    f"from {TIMES} times the median of the last {BACKUPS} incrementals and more than any of the last {REMEMBERED}, or"
    f" from {INCOMPRESSIBLE_PERCENT} % of the size when compressed and {STEP_PERCENT} points above the median; at least"
    f" {MIN_BYTES >> 20} MiB, and {MIN_BACKUPS} incrementals before"
)


@dataclass(frozen=True)
class Amount:
    """How much changed, and how much usually does in that time."""

    size_bytes: int
    usual_bytes: int

    @property
    def times(self) -> int | None:
        """How many times the usual amount; None if that is next to nothing."""
        return self.size_bytes // self.usual_bytes if self.usual_bytes >= LITTLE_BYTES else None


@dataclass(frozen=True)
class Compressed:
    """How much is left of the data when compressed, and how much usually is, in percent."""

    percent: int
    usual_percent: int


@dataclass(frozen=True)
class Verdict:
    """What is unusual about the changes of one disk; each None if it is not, or if too little is known."""

    data: Amount | None = None
    zeros: Amount | None = None
    compressed: Compressed | None = None

    @property
    def text(self) -> str | None:
        """The verdict in words that follow "Disk vda: "; None if nothing is unusual."""
        parts = []
        if self.data is not None:
            usual = (
                f"{self.data.times} times the usual change" if self.data.times else "much more than the usual change"
            )
            parts.append(f"{usual} ({size(self.data.size_bytes)}, usually {size(self.data.usual_bytes)})")
        if self.compressed is not None:
            subject = "it" if parts else "the changed data"
            left = f"{self.compressed.percent} % are left, usually {self.compressed.usual_percent} %"
            parts.append(f"{subject} does not compress any more ({left})")
        if self.zeros is not None:
            usual = f"{self.zeros.times} times the usual amount" if self.zeros.times else "usually hardly any"
            parts.append(f"{size(self.zeros.size_bytes)} became zeros ({usual}), as by fstrim or by wiping")
        return ", and ".join(parts) or None


def verdict(backup: Backup, dev: str, earlier: Sequence[Backup]) -> Verdict:
    """Compare the change of a disk with that in the backups before; those of ``earlier`` that are not do not count."""
    image = backup.image(dev)
    if image is None or image.change is None or image.level is not Level.INCREMENTAL:
        return Verdict()
    before = sorted((one for one in earlier if one.sequence < backup.sequence), key=lambda one: one.sequence)
    times = {one.id: one.time for one in before}
    past = [
        (found.change, _elapsed_s(one, found, times))
        for one in before
        if (found := one.image(dev)) is not None and found.change is not None and found.level is Level.INCREMENTAL
    ][-REMEMBERED:]
    if len(past) < MIN_BACKUPS:
        return Verdict()
    usual_s = _median([elapsed_s for _, elapsed_s in past[-BACKUPS:]])
    patience = max(1.0, _elapsed_s(backup, image, times) / max(usual_s, MIN_INTERVAL_S))
    changes = [change for change, _ in past]
    return Verdict(
        _amount(image.change.data_bytes, [one.data_bytes for one in changes], patience=patience),
        _amount(image.change.zero_bytes, [one.zero_bytes for one in changes], patience=patience),
        _compressed(image.change, changes[-BACKUPS:]),
    )


def watched(backup: Backup, earlier: Sequence[Backup]) -> Backup:
    """Return the backup with the verdicts in the changes of its images."""

    def with_verdict(image: DiskImage) -> DiskImage:
        if image.change is None:
            return image
        return replace(image, change=replace(image.change, unusual=verdict(backup, image.dev, earlier).text))

    return replace(backup, disks=tuple(with_verdict(image) for image in backup.disks))


def unusual(backup: Backup) -> dict[str, str]:
    """Return what is unusual about the changes of the disks, by dev, in words that follow "Disk vda: "."""
    return {
        image.dev: image.change.unusual
        for image in backup.disks
        if image.change is not None and image.change.unusual is not None
    }


def warnings(backup: Backup) -> list[str]:
    """Return a sentence for each disk whose change is unusual."""
    return [
        f"Disk {dev}: {what}. If nobody did that on purpose (an upgrade, a restore, fstrim), look"
        f" at the guest before older backups are removed: ransomware begins like this. (Unusual is {THRESHOLDS}.)"
        for dev, what in unusual(backup).items()
    ]


def _elapsed_s(backup: Backup, image: DiskImage, times: Mapping[str, datetime]) -> float:
    """Return the time since the base; 0 if the base is gone, or the clock stepped back."""
    base = times.get(image.base or "")
    return max(0.0, (backup.time - base).total_seconds()) if base is not None else 0.0


def _amount(size_bytes: int, past: Sequence[int], *, patience: float) -> Amount | None:
    usual_bytes = int(_median(past[-BACKUPS:]) * patience)
    if size_bytes < max(MIN_BYTES, TIMES * usual_bytes) or size_bytes <= max(past) * patience:
        return None
    return Amount(size_bytes, usual_bytes)


def _compressed(change: ChangeRecord, past: Sequence[ChangeRecord]) -> Compressed | None:
    percents = [_percent(one) for one in past if one.sampled_bytes >= MIN_SAMPLED_BYTES]
    if len(percents) < MIN_BACKUPS or change.sampled_bytes < MIN_SAMPLED_BYTES or change.data_bytes < MIN_BYTES:
        return None
    percent, usual_percent = _percent(change), int(_median(percents))
    if percent < max(INCOMPRESSIBLE_PERCENT, usual_percent + STEP_PERCENT):
        return None
    return Compressed(percent, usual_percent)


def _median(values: Sequence[float]) -> float:
    """Return the upper one of two medians; the module statistics takes longer to import than all this."""
    return sorted(values)[len(values) // 2]


def _percent(change: ChangeRecord) -> int:
    return round(100 * change.compressed_bytes / change.sampled_bytes)
