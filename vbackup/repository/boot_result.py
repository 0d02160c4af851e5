"""Keep the result of the last boot test with the backup: boot.json, and the screen at its end in boot.png.

They are notes, like verified.json: no backup needs them to be read or restored, and what cannot be read counts as none.
vbackup-repository(5) describes the members. vbackup.operations.boot_test makes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from vbackup.errors import ChainError
from vbackup.fields import Fields
from vbackup.files import digest_of, replace_bytes, storage_errors
from vbackup.repository import kept_result, manifest

NAME, PICTURE = "boot.json", "boot.png"
SCHEMA = "vbackup.boot/1"
BOOTED, FAILED = "booted", "failed"


@dataclass(frozen=True)
class BootResult:
    """What a boot test of a backup has shown. Times are seconds after the start of the copy."""

    time: datetime  #: when it ended
    is_good: bool  #: everything that was asked for was reached
    reason: str  #: a sentence: what was reached, or what was not
    asked: Mapping[str, Any] = field(default_factory=dict)  #: agent, exec, console, screen
    agent_s: float | None = None
    exec_s: float | None = None
    exec_status: int | None = None
    exec_output: str = ""
    console_s: float | None = None
    screen_s: float | None = None
    duration_s: float = 0.0  #: of the whole test
    timeout_s: float = 0.0
    disks: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()  #: what the copy did not have of the domain
    console_end: str = ""  #: the end of what was written to the consoles
    versions: Mapping[str, str] = field(default_factory=dict)
    picture: str | None = None  #: digest of boot.png

    @property
    def verdict(self) -> str:
        """The verdict in one word."""
        return BOOTED if self.is_good else FAILED


def read(directory: Path) -> BootResult | None:
    """Return the result that is kept in a backup's directory; None if there is none, or it cannot be read."""
    return kept_result.read(directory / NAME, SCHEMA, _parse)


def write(directory: Path, result: BootResult, picture: bytes | None) -> BootResult:
    """Keep the result and the picture (PNG) in a backup's directory, and return it with the picture's digest.

    Raises StorageError, NoSpaceError.
    """
    kept = replace(result, picture=None if picture is None else digest_of(picture))
    with storage_errors(f"write {directory / NAME}"):
        if picture is not None:
            replace_bytes(directory / PICTURE, picture)
        kept_result.write(directory / NAME, SCHEMA, document(kept))
        if picture is None:
            (directory / PICTURE).unlink(missing_ok=True)
    return kept


def document(result: BootResult) -> dict[str, Any]:
    """Return the result as a JSON object, without the schema member."""
    members = asdict(result)
    picture = members.pop("picture")
    return {
        "time": manifest.iso(members.pop("time")),
        "verdict": result.verdict,
        **{name: value for name, value in members.items() if name != "is_good"},
        "screenshot": None if picture is None else {"file": PICTURE, "digest": picture},
    }


def _parse(fields: Fields) -> BootResult:
    def number(name: str) -> float | None:
        return fields.number(name) if fields.raw(name) is not None else None

    asked, versions = (_known(fields.raw(name)) for name in ("asked", "versions"))
    has_picture = fields.raw("screenshot") is not None
    verdict = fields.text("verdict")
    if verdict not in (BOOTED, FAILED):
        raise ChainError(f"{NAME} has the verdict {verdict!r}, which is unknown.")
    return BootResult(
        time=manifest.time(fields.text("time"), NAME),
        is_good=verdict == BOOTED,
        reason=fields.text("reason"),
        asked=asked,
        agent_s=number("agent_s"),
        exec_s=number("exec_s"),
        exec_status=status if isinstance(status := fields.raw("exec_status"), int) else None,
        exec_output=fields.text("exec_output"),
        console_s=number("console_s"),
        screen_s=number("screen_s"),
        duration_s=fields.number("duration_s"),
        timeout_s=fields.number("timeout_s"),
        disks=tuple(_texts(fields.raw("disks"))),
        remarks=tuple(_texts(fields.raw("remarks"))),
        console_end=fields.text("console_end"),
        versions={name: str(version) for name, version in versions.items()},
        picture=fields.object("screenshot").text("digest") if has_picture else None,
    )


def _known(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ChainError(f"{NAME} has something else where an object should be.")
    return value


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ChainError(f"{NAME} has something else where a list of texts should be.")
    return value
