"""Cases of several dimensions: all of them, or as many as name each value of the longest dimension once.

The default takes the value of each other dimension in turn, so each value is in some case. VBACKUP_KILLS=1, which also
kills at every step, takes all.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

TAKES_ALL = os.environ.get("VBACKUP_KILLS") == "1"


def crossed(longest: Sequence[Any], *others: Sequence[Any]) -> list[tuple[Any, ...]]:
    """The cases, each with one value of every dimension; a value that is a tuple is several parameters.

    Where the length of one dimension divides that of another, some of their pairs are never met.
    """
    if TAKES_ALL:
        chosen = itertools.product(longest, *others)
    else:
        chosen = ((one, *(other[n % len(other)] for other in others)) for n, one in enumerate(longest))
    parts = ([value if isinstance(value, tuple) else (value,) for value in case] for case in chosen)
    return [tuple(itertools.chain(*values)) for values in parts]
