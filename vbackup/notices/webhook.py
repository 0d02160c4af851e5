"""The report of a run by POST, as JSON, signed if there is a secret for it.

The headers are those of Standard Webhooks (standardwebhooks.com), for which receivers have libraries: webhook-id is the
same for each attempt, so that a receiver can drop a second one; webhook-timestamp makes an old one useless; and
webhook-signature is "v1," and the HMAC-SHA256, in base64, of "ID.TIMESTAMP.BODY".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from vbackup.errors import NoticeError, Retry
from vbackup.notices import requests
from vbackup.notices.requests import Post

_PREFIX = "whsec_"


def send(
    notifier: str, url: str, document: Mapping[str, Any], *, secret: str | None, time_s: float, timeout_s: float
) -> None:
    """Send a document whose ``id`` is that of the message. Raises NoticeError."""
    body = json.dumps(document, ensure_ascii=False, default=str).encode("utf-8", "replace")
    headers = headers_of(str(document["id"]), int(time_s), body, key(notifier, secret))
    requests.send(Post(notifier, url, body, headers), timeout_s)


def headers_of(message: str, timestamp: int, body: bytes, key: bytes | None) -> dict[str, str]:
    """Return the headers of a message; with its signature if there is a key."""
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "webhook-id": message,
        "webhook-timestamp": str(timestamp),
    }
    if key is not None:
        digest = hmac.new(key, b".".join((message.encode(), str(timestamp).encode(), body)), hashlib.sha256).digest()
        headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return headers


def key(notifier: str, secret: str | None) -> bytes | None:
    """Return the key in a secret: "whsec_" and base64, as libraries make it, or any other text as it is.

    Raises NoticeError, which says nothing of the secret.
    """
    if secret is None:
        return None
    if not secret.startswith(_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret[len(_PREFIX) :], validate=True)
    except binascii.Error:
        pass
    raise NoticeError(notifier, "its secret begins with whsec_, but what follows is not base64", retry=Retry.NEVER)
