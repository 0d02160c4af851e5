"""What a webhook gets can be verified by its receiver, as Standard Webhooks has it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import pytest

from tests.web import Web
from vbackup.errors import NoticeError, Retry
from vbackup.notices import webhook
from vbackup.notices.webhook import headers_of, key

MESSAGE = "msg_p5jXN8AQM9LWM0D4loKWxJek"


def test_signature_is_that_of_the_specification() -> None:
    """The example of standardwebhooks.com's own tests."""
    found = headers_of(
        MESSAGE, 1614265330, b'{"test": 2432232314}', key("ops", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    )
    assert found["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_receiver_gets_json_that_it_can_verify(server: Web) -> None:
    document = {"id": MESSAGE, "text": "Müller's disk is full"}
    webhook.send("ops", server.url, document, secret="some secret", time_s=1764464400.9, timeout_s=5)
    (asked,) = server.asked
    assert json.loads(asked.body) == document
    assert asked.headers["content-type"] == "application/json; charset=utf-8"
    assert (asked.headers["webhook-id"], asked.headers["webhook-timestamp"]) == (MESSAGE, "1764464400")
    signed = f"{MESSAGE}.1764464400.".encode() + asked.body
    wanted = base64.b64encode(hmac.new(b"some secret", signed, hashlib.sha256).digest()).decode()
    assert asked.headers["webhook-signature"] == f"v1,{wanted}"


def test_nothing_is_signed_without_a_secret(server: Web) -> None:
    webhook.send("ops", server.url, {"id": MESSAGE}, secret=None, time_s=0, timeout_s=5)
    assert "webhook-signature" not in server.asked[0].headers


def test_text_that_is_not_unicode_is_sent(server: Web) -> None:
    webhook.send("ops", server.url, {"id": MESSAGE, "text": "x\udcff"}, secret=None, time_s=0, timeout_s=5)
    assert json.loads(server.asked[0].body)["text"] == "x?"


def test_broken_secret_is_refused_without_a_word_of_it() -> None:
    with pytest.raises(NoticeError) as caught:
        key("ops", "whsec_s3cr3t!")
    assert caught.value.retry is Retry.NEVER
    assert "s3cr3t" not in str(caught.value)
    assert caught.value.__context__ is None
