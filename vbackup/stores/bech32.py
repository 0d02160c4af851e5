"""Bech32 (BIP 173), in which age writes its keys: letters and digits with a checksum, all of one case."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_CHARSET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM_LENGTH = 6


def encode(prefix: str, data: bytes) -> str:
    """Return the data with a lower-case prefix in front and the checksum behind it."""
    values = _regrouped(data, 8, 5, pad=True)
    checksum = _polymod([*_expanded(prefix), *values, *[0] * _CHECKSUM_LENGTH]) ^ 1
    values += [checksum >> 5 * (5 - place) & 31 for place in range(_CHECKSUM_LENGTH)]
    return f"{prefix}1{''.join(_CHARSET[value] for value in values)}"


def decode(text: str) -> tuple[str, bytes]:
    """Return the prefix, in lower case, and the data. Raises ValueError, with a message that has nothing of the text.

    The text may be a secret.
    """
    if text not in (text.lower(), text.upper()):
        raise ValueError("it has small and capital letters")
    prefix, separator, tail = text.lower().rpartition("1")
    if not separator or not prefix or len(tail) < _CHECKSUM_LENGTH or any(one not in _CHARSET for one in tail):
        raise ValueError("it is no Bech32 text")
    values = [_CHARSET.index(one) for one in tail]
    if _polymod([*_expanded(prefix), *values]) != 1:
        raise ValueError("its checksum is wrong: a character may be missing or different")
    return prefix, bytes(_regrouped(values[:-_CHECKSUM_LENGTH], 5, 8, pad=False))


def _polymod(values: Iterable[int]) -> int:
    checksum = 1
    for value in values:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for place, generator in enumerate(_GENERATOR):
            if top >> place & 1:
                checksum ^= generator
    return checksum


def _expanded(prefix: str) -> list[int]:
    return [*(ord(one) >> 5 for one in prefix), 0, *(ord(one) & 31 for one in prefix)]


def _regrouped(data: Sequence[int], from_bits: int, to_bits: int, *, pad: bool) -> list[int]:
    """Return the same bits in numbers of ``to_bits``. Raises ValueError if bits that are left over are not 0."""
    held, bits = 0, 0
    result = []
    for value in data:
        held = held << from_bits | value
        bits += from_bits
        while bits >= to_bits:
            bits -= to_bits
            result.append(held >> bits & (1 << to_bits) - 1)
            held &= (1 << bits) - 1
    if pad and bits:
        result.append(held << to_bits - bits & (1 << to_bits) - 1)
    elif not pad and (bits >= from_bits or held):
        raise ValueError("it has bits left over")
    return result
