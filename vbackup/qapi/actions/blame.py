"""Find the action of a transaction that an error of QEMU is about.

QEMU's message has the number of the action only if the JSON does not match the schema; otherwise only its words tell.
The words are those of QEMU 7.2; tests/contract/test_checker.py compares them with the QEMU that is installed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vbackup.qapi.actions.bitmaps import MIN_GRANULARITY_BYTES

Data = Mapping[str, Any]
#: Return True if the message can be about an action of this type, with this data.
Fits = Callable[[str, Data, "re.Match[str]"], bool]

_PATH = re.compile(r"'actions\[([0-9]+)\][^']*'")
_QUOTED = re.compile(r"'([^']*)'")
_ADD, _MERGE = "block-dirty-bitmap-add", "block-dirty-bitmap-merge"
_BACKUPS = ("blockdev-backup", "drive-backup")


def failing_index(actions: Sequence[Mapping[str, Any]], description: str) -> int | None:
    """Return the index of the action that QEMU's error ``description`` is about, or None if it is unknown.

    ``actions`` is the list as it was sent. If the message fits several actions, the result is the first of them where
    QEMU must have failed at that one, else None.
    """
    path = _PATH.search(description)
    if path is not None:
        index = int(path[1])
        return index if index < len(actions) else None
    for pattern, fits, first_fails in _MESSAGES:
        match = pattern.search(description)
        if match is not None:
            return _only(_fitting(actions, fits, match), first_fails=first_fails)
    any_name = _QUOTED.search(description)
    return _only(_fitting(actions, _has_all_names, any_name), first_fails=False) if any_name is not None else None


def _fitting(actions: Sequence[Mapping[str, Any]], fits: Fits, match: re.Match[str]) -> list[int]:
    indexes = []
    for index, action in enumerate(actions):
        kind, data = action.get("type"), action.get("data")
        if isinstance(kind, str) and fits(kind, data if isinstance(data, dict) else {}, match):
            indexes.append(index)
    return indexes


def _only(indexes: Sequence[int], *, first_fails: bool) -> int | None:
    return indexes[0] if len(indexes) == 1 or (indexes and first_fails) else None


def _strings(value: Any, levels: int = 4) -> Iterator[str]:
    """Yield all strings in the data of an action, as deep as QAPI nests them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)) and levels > 0:
        for element in value.values() if isinstance(value, dict) else value:
            yield from _strings(element, levels - 1)


def _bitmaps(kind: str, data: Data) -> Iterator[str]:
    """Yield the names of the bitmaps that an action other than add looks up by node and name."""
    if kind == _MERGE:
        yield from _strings(data.get("target"))
        sources = data.get("bitmaps")
        for source in sources if isinstance(sources, list) else ():
            yield from _strings(source.get("name") if isinstance(source, dict) else source)
    elif kind.startswith("block-dirty-bitmap-") and kind != _ADD:
        yield from _strings(data.get("name"))


def _nodes(data: Data) -> Iterator[str]:
    """Yield the names of all nodes and devices that an action looks up."""
    for name in ("node", "device", "node-name", "target", "overlay"):
        yield from _strings(data.get(name))
    sources = data.get("bitmaps")
    for source in sources if isinstance(sources, list) else ():
        if isinstance(source, dict):
            yield from _strings(source.get("node"))


def _has_all_names(_kind: str, data: Data, match: re.Match[str]) -> bool:
    """Return True if the action contains every name that the message, which is not in _MESSAGES, quotes."""
    return set(_QUOTED.findall(match.string)) <= set(_strings(data))


def _names(*names: str) -> Fits:
    """Match an action that has the name in the message in one of these members."""
    return lambda _kind, data, match: any(data.get(name) == match[1] for name in names)


def _adds(kind: str, data: Data, match: re.Match[str]) -> bool:
    return kind == _ADD and data.get("name") == match[1]


def _stores_on(kind: str, data: Data, match: re.Match[str]) -> bool:
    return kind == _ADD and data.get("persistent") is True and data.get("node") == match[1]


def _is_invalid_granularity(kind: str, data: Data, _match: re.Match[str]) -> bool:
    size = data.get("granularity")
    return kind == _ADD and isinstance(size, int) and (size < MIN_GRANULARITY_BYTES or bool(size & (size - 1)))


def _has_invalid_source(kind: str, data: Data, _match: re.Match[str]) -> bool:
    sources = data.get("bitmaps")
    return (
        kind == _MERGE and isinstance(sources, list) and not all(isinstance(source, (str, dict)) for source in sources)
    )


def _deep_member(_kind: str, data: Data, match: re.Match[str]) -> bool:
    perf = data.get("x-perf")
    return match[1] in data or (isinstance(perf, dict) and match[1] in perf)


def _deep_value(kind: str, data: Data, match: re.Match[str]) -> bool:
    return data.get(match[1]) == match[2] or (match[1] == "type" and kind == match[2])


#: The message; the actions it can be about; whether QEMU must have failed at the first of these, since the message
#: depends on the action alone and not on the state of QEMU. The first message that matches decides.
_MESSAGES: tuple[tuple[re.Pattern[str], Fits, bool], ...] = tuple(
    (re.compile(pattern), fits, first_fails)
    for pattern, fits, first_fails in (
        (r"Transaction aborted using Abort action", lambda kind, _d, _m: kind == "abort", True),
        (r"Action '([^']*)' does not support [Tt]ransaction property", lambda kind, _d, match: kind == match[1], True),
        (r"Parameter '([^']*)' does not accept value '(.*)'$", _deep_value, True),
        (r"Parameter '([^']*)' expects", _deep_member, False),
        (r"Invalid parameter type for 'null', expected: BlockDirtyBitmap", _has_invalid_source, True),
        # bitmaps
        (r"^Bitmap name cannot be empty", lambda kind, data, _m: kind == _ADD and data.get("name") == "", True),
        (r"^Bitmap name too long: (.*)$", _adds, True),
        (r"^Granularity must be", _is_invalid_granularity, True),
        (r"^Bitmap already exists: (.*)$", _adds, False),
        (r"^Can't make bitmap '(.*)' persistent", _adds, False),
        (r"^Can't store persistent bitmaps to (.*?):", _stores_on, False),
        (r"^Dirty bitmap '(.*)' not found$", lambda kind, data, match: match[1] in _bitmaps(kind, data), False),
        (r"^Bitmap '(.*)' could not be found$", _names("bitmap"), False),
        (
            r"^Bitmap '(.*?)' (?:is|cannot)",
            lambda kind, data, match: match[1] in _bitmaps(kind, data) or data.get("bitmap") == match[1],
            False,
        ),
        # backups
        (
            r"must provide a valid bitmap name for '([^']*)' sync mode",
            lambda _k, data, match: data.get("sync") == match[1] and "bitmap" not in data,
            True,
        ),
        (
            r"[Bb]itmap sync mode must be given when providing a bitmap",
            lambda _k, data, _m: "bitmap" in data and "bitmap-mode" not in data and data.get("sync") != "incremental",
            True,
        ),
        (
            r"[Bb]itmap sync mode must be '[^']*' when using sync mode '([^']*)'",
            lambda _k, data, match: data.get("sync") == match[1] and data.get("bitmap-mode") in ("never", "always"),
            True,
        ),
        (
            r"Cannot specify [Bb]itmap sync mode without a bitmap",
            lambda _k, data, _m: "bitmap-mode" in data and "bitmap" not in data,
            True,
        ),
        (
            r"^sync mode '([^']*)' does not produce meaningful bitmap",
            lambda _k, data, match: data.get("sync") == match[1] and "bitmap" in data,
            True,
        ),
        (
            r"[Bb]itmap sync mode '([^']*)' has no meaningful effect when combined with sync mode '([^']*)'",
            lambda _k, data, match: (data.get("bitmap-mode"), data.get("sync")) == (match[1], match[2]),
            True,
        ),
        (
            r"^Source and target cannot be the same",
            lambda _k, data, _m: data.get("device") is not None and data.get("device") == data.get("target"),
            True,
        ),
        (r"^Invalid job ID ''$", lambda kind, data, _m: kind in _BACKUPS and not data.get("job-id"), False),
        (r"^Invalid job ID '(.*)'$", _names("job-id"), True),
        (r"^Job ID '(.*)' already in use$", _names("job-id"), False),
        # nodes and files
        (
            r"^New overlay node-name missing",
            lambda _k, data, _m: "node-name" in data and "snapshot-node-name" not in data,
            True,
        ),
        (
            r"^Cannot find device='' nor node-name=''$",
            lambda kind, data, _m: kind == "blockdev-snapshot-sync" and not {"device", "node-name"} & set(data),
            True,
        ),
        (
            r"^Cannot find device='([^']*)' nor node-name='([^']*)'$",
            lambda _k, data, match: bool({match[1], match[2]} & set(_nodes(data)) - {""}),
            False,
        ),
        (r"^Node '(.*)' not found$", lambda _k, data, match: match[1] in _nodes(data), False),
        (r"Invalid node-name: '([^']*)'", _names("filter-node-name", "snapshot-node-name"), False),
        (r"^Node '([^']*)' is busy", lambda _k, data, match: match[1] in _nodes(data), False),
        (r"^Name is empty", lambda kind, data, _m: kind.endswith("internal-sync") and data.get("name") == "", True),
    )
)
