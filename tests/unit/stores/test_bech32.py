"""Bech32 as BIP 173 has it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbackup.stores import bech32


@given(prefix=st.text("abcdefghijklmnop-", min_size=1, max_size=20), data=st.binary(max_size=64))
def test_what_was_encoded_is_decoded(prefix: str, data: bytes) -> None:
    text = bech32.encode(prefix, data)
    assert bech32.decode(text) == bech32.decode(text.upper()) == (prefix, data)


@given(place=st.integers(4, 61), to=st.sampled_from("qpzry9x8gf2tvdw0s3jn54khce6mua7l"))
def test_one_wrong_character_is_found(place: int, to: str) -> None:
    text = bech32.encode("age", bytes(range(32)))
    changed = text[:place] + to + text[place + 1 :]
    if changed == text:
        return
    with pytest.raises(ValueError, match="checksum"):
        bech32.decode(changed)


@pytest.mark.parametrize("text", ["A12uEL5L", "1", "", "age1", "abc1b", "x1b4n0q5v", "li1dgmt3", "1qzzfhee"])
def test_what_is_not_valid_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"it (is no|has)|checksum"):
        bech32.decode(text)


def test_valid_of_the_standard() -> None:
    assert bech32.decode("A12UEL5L") == ("a", b"")
    assert bech32.decode("abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw")[0] == "abcdef"
