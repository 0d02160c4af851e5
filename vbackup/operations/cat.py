"""Give the content of a file of a guest in a backup: ``vbackup cat``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vbackup.images.guest import Keys
from vbackup.images.guest_address import Address
from vbackup.operations import inside
from vbackup.report import Reporter
from vbackup.repository.choice import Wanted
from vbackup.repository.repository import Repository
from vbackup.stop import Stop

_PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class CatRequest:
    """The options of ``vbackup cat``."""

    domain: str  #: name or UUID
    wanted: Wanted
    address: Address


def run(
    request: CatRequest,
    write: Callable[[bytes], object],
    *,
    keys: Keys,
    repository: Repository,
    reporter: Reporter,
    stop: Stop,
) -> None:
    """Call ``write`` with the content, piece by piece.

    Raises what vbackup.operations.inside.opened raises, UnsuitableError if there is no such file.
    """
    with inside.opened(
        request.domain,
        request.wanted,
        where=request.address.where,
        keys=keys,
        repository=repository,
        reporter=reporter,
        stop=stop,
    ) as there:
        there.guest.mount(request.address.where)
        with there.files.content(request.address.path) as stream:
            while piece := stream.read(_PIECE_BYTES):
                write(piece)
