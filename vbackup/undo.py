"""Undo started work, the last step first, even if some steps fail.

An undo is registered just before its step, because the reply to the step can be lost. So there may be nothing to undo,
and an undo checks before it removes anything.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from vbackup.errors import LinkLostError, QemuGoneError
from vbackup.report import Reporter


class Undo:
    """A stack of undo steps that runs at the end of the block, after success and failure. A context manager.

    A failing step is reported as a warning, and the others still run. A step that finds QEMU gone (QemuGoneError) has
    nothing to undo. After a LinkLostError of the block, a step that says the same is not reported: it was told that the
    link is lost, and what ends with it. ``release`` drops the steps and so keeps the work.
    """

    def __init__(self, reporter: Reporter, *, tries_again: str = "The next backup of this domain") -> None:
        """``tries_again``: who does what could not be done, as the subject of a sentence."""
        self._reporter = reporter
        self._tries_again = tries_again
        #: True if every step that has run so far has done its work.
        self.is_complete = True
        self._steps: list[tuple[str, Callable[[], object]]] = []

    def push(self, what: str, step: Callable[[], object]) -> None:
        """Register ``step``; ``what`` completes the warning "Could not ..."."""
        self._steps.append((what, step))

    def release(self) -> None:
        """Drop all registered steps, so that their work stays."""
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
                continue  # it disappeared with QEMU
            except Exception as err:  # noqa: BLE001 - a fault in one undo must not prevent the others
                self.is_complete = False
                if isinstance(err, LinkLostError) and isinstance(error, LinkLostError):
                    continue
                self._reporter.warning(f"Could not {what}: {str(err).rstrip('.')}. {self._tries_again} tries again.")
