"""Undo what was begun, last first, whatever goes wrong on the way.

A step's undo is registered just before the step, because its reply can be lost. Undoing nothing is
fine, so an undo asks before it removes.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from vbackup.errors import QemuGoneError
from vbackup.report import Reporter


class Undo:
    """A stack of undo steps that runs when the block is left, in success and failure alike.

    A step that fails is reported as a warning and does not keep the others from running. ``release``
    forgets the steps: what was begun stays.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._steps: list[tuple[str, Callable[[], object]]] = []

    def push(self, what: str, step: Callable[[], object]) -> None:
        """Register ``step``; ``what`` completes "could not ..."."""
        self._steps.append((what, step))

    def release(self) -> None:
        """Keep what was begun."""
        self._steps.clear()

    def __enter__(self) -> Undo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._steps:
            what, step = self._steps.pop()
            try:
                step()
            except QemuGoneError:
                continue  # it went with QEMU
            except Exception as err:  # noqa: BLE001 - a fault in one undo must not keep the others from running
                self._reporter.warning(f"Could not {what}: {err} The next backup of this domain tries again.")
