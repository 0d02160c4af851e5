"""Put a new image in the place of another one on another host, through the link to it.

The program of vbackup.images.replacement does it there. What it has begun when the link is lost, it ends.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vbackup.errors import RemoteError
from vbackup.images import replacement
from vbackup.images.replacement import Replacement
from vbackup.remote.link import Link

#: How long storage there may take for one step.
_STEP_S = 300.0


class ReplacementThere(Replacement):
    """An image of another host. All methods raise OSError as Replacement does, RemoteError and LinkLostError."""

    def __init__(self, link: Link, path: Path, backup: str) -> None:
        super().__init__(path, backup)
        self._link = link

    def discard(self) -> None:
        """Remove the new image if it is not in its place yet."""
        self._do("discard")

    def adopt(self, made: Path) -> None:
        """Take a file of the same filesystem for the new image."""
        self._do("adopt", made)

    def take_attributes(self) -> None:
        """Give the new image owner, mode, label, ACL and further attributes of the old one, if there is one."""
        self._do("take_attributes")

    def check_attributes(self) -> None:
        """Raise OSError if a new image cannot be made there, or not with what the old one has; nothing is left."""
        self._do("check_attributes")

    def barrier(self) -> str | None:
        """Return why the image can get no other name, and the command that changes that; None if it can."""
        found = self._do("barrier")
        if found is None or type(found) is str:
            return found
        raise RemoteError(self._link.host, f"look at {self.path}", f"the answer is {found!r:.100}")

    def put(self) -> None:
        """Put the new image in the place of the old one, which is kept; again, if that was interrupted."""
        self._do("put")

    def remove_old(self) -> None:
        """Remove the old image."""
        self._do("remove_old")

    def _do(self, method: str, *more: Path) -> Any:
        argv = ["python3", "-IS", "-", method, os.fspath(self.path), self.backup, *map(os.fspath, more)]
        said = self._link.run(argv, Path(replacement.__file__).read_bytes(), timeout_s=_STEP_S)
        try:
            answer = json.loads(said)
            if "errno" in answer:
                raise OSError(int(answer["errno"]), str(answer["text"]))
            return answer["return"]
        except (ValueError, TypeError, KeyError, RecursionError) as err:
            raise RemoteError(self._link.host, f"exchange {self.path}", f"the answer is {said!r:.100}") from err
