"""Signatures beside the example that Amazon publishes for GET Object ("Signature Calculations for ... AWS SigV4")."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone

from vbackup.stores.signing import Keys, Request, signed_headers

KEYS = Keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
NOW = datetime(2013, 5, 24, tzinfo=timezone.utc)
EMPTY = hashlib.sha256(b"").hexdigest()
HOST = {"host": "examplebucket.s3.amazonaws.com"}


def signature(request: Request, keys: Keys = KEYS) -> str:
    return signed_headers(request, keys, "us-east-1", NOW)["authorization"].rpartition("Signature=")[2]


def test_get_object() -> None:
    request = Request("GET", "/test.txt", {}, {**HOST, "range": "bytes=0-9"}, EMPTY)
    assert signature(request) == "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"


def test_list_objects() -> None:
    request = Request("GET", "/", {"max-keys": "2", "prefix": "J"}, HOST, EMPTY)
    assert signature(request) == "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"


def test_put_object_whose_name_has_to_be_quoted() -> None:
    body = hashlib.sha256(b"Welcome to Amazon S3.").hexdigest()
    headers = {**HOST, "date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"}
    request = Request("PUT", "/test$file.text", {}, headers, body)
    assert signature(request) == "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"


def test_token_is_signed_and_secrets_have_no_text_form() -> None:
    request = Request("GET", "/", {}, HOST, EMPTY)
    with_token = Keys(KEYS.access_key, KEYS.secret_key, "the-token")
    assert signature(request, with_token) != signature(request)
    assert "x-amz-security-token" in signed_headers(request, with_token, "us-east-1", NOW)
    assert "the-token" not in repr(with_token)
    assert KEYS.secret_key not in repr(with_token)
