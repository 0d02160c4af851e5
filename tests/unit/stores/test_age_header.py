"""Headers of age files: for several recipients, of one length, and refused if they were changed."""

from __future__ import annotations

import pytest

from vbackup.stores import age_header
from vbackup.stores.age_header import BYTES, MAX_RECIPIENTS, DamagedHeaderError, NotForThisIdentityError
from vbackup.stores.age_keys import Identity

IDENTITIES = [Identity(bytes([number]) * 32) for number in range(1, MAX_RECIPIENTS + 2)]
KEY = bytes(range(16))


def header(count: int) -> bytes:
    return age_header.make(KEY, [each.recipient for each in IDENTITIES[:count]])


@pytest.mark.parametrize("count", [1, 2, MAX_RECIPIENTS])
def test_every_recipient_opens_it_and_nobody_else(count: int) -> None:
    data = header(count)
    assert len(data) == BYTES
    parsed = age_header.parse(data + b"what follows")
    assert parsed.data == data
    for identity in IDENTITIES[:count]:
        assert age_header.unwrap(parsed, [IDENTITIES[-1], identity]) == KEY
    with pytest.raises(NotForThisIdentityError):
        age_header.unwrap(parsed, [IDENTITIES[-1]])


def test_headers_for_one_key_and_the_same_recipients_have_nothing_in_common() -> None:
    one, other = header(1), header(1)
    assert one[32:160] != other[32:160]
    assert one[-40:] != other[-40:]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"vbackup-fill --", b"vbackup-fill -x"),
        (b"-> vbackup-fill", b"-> vbackup-feel"),
        (b"v1\n->", b"v2\n->"),
        (b"X25519 ", b"X25519 x "),
        (b"\n--- ", b"\n--+ "),
        (b"\n--- ", b"\n--- *"),
        (b"-> X25519", b"=> X25519"),
    ],
)
def test_changed_header_is_refused(old: bytes, new: bytes) -> None:
    data = header(2)
    assert old in data
    with pytest.raises((DamagedHeaderError, NotForThisIdentityError)):
        age_header.unwrap(age_header.parse(data.replace(old, new, 1)), IDENTITIES[:2])


@pytest.mark.parametrize("length", [0, 5, 22, 100, 2000, BYTES - 1])
def test_header_that_was_cut_is_refused(length: int) -> None:
    with pytest.raises(DamagedHeaderError):
        age_header.parse(header(1)[:length])


def test_every_changed_byte_is_found() -> None:
    data = header(1)
    for place in range(0, BYTES, 7):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises((DamagedHeaderError, NotForThisIdentityError)):
            age_header.unwrap(age_header.parse(changed), IDENTITIES[:1])
