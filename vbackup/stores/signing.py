"""Sign requests to S3 as AWS specifies it (Signature Version 4), with the digest of the body as a part of it.

So the server refuses a body that was changed on the way, and a request cannot be used for anything else.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import quote

_ALGORITHM = "AWS4-HMAC-SHA256"
_SAFE = "-_.~"


@dataclass(frozen=True)
class Keys:
    """Credentials for S3; their text form has no secret."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)  #: of temporary credentials
    expires: datetime | None = None  #: when they have to be asked for again; None: never


@dataclass(frozen=True)
class Request:
    """A request as it is signed. ``path``: not yet quoted; ``headers``: names in lower case, ``host`` among them."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body_sha256: str

    @property
    def quoted_path(self) -> str:
        """The path as it stands in the request line."""
        return quote(self.path, safe="/" + _SAFE)

    @property
    def quoted_query(self) -> str:
        """The query as it stands in the request line, sorted by name."""
        return "&".join(
            f"{quote(name, safe='-_.~')}={quote(self.query[name], safe='-_.~')}" for name in sorted(self.query)
        )


def signed_headers(request: Request, keys: Keys, region: str, now: datetime) -> dict[str, str]:
    """Return the headers of ``request`` with its signature among them. ``now``: the time in UTC."""
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    headers = {**request.headers, "x-amz-date": stamp, "x-amz-content-sha256": request.body_sha256}
    if keys.token is not None:
        headers["x-amz-security-token"] = keys.token
    names = ";".join(sorted(headers))
    canonical = "\n".join(
        (
            request.method,
            request.quoted_path,
            request.quoted_query,
            *(f"{name}:{headers[name].strip()}" for name in sorted(headers)),
            "",
            names,
            request.body_sha256,
        )
    )
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    text = "\n".join((_ALGORITHM, stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = f"AWS4{keys.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.new(key, text.encode(), "sha256").hexdigest()
    headers["authorization"] = (
        f"{_ALGORITHM} Credential={keys.access_key}/{scope},SignedHeaders={names},Signature={signature}"
    )
    return headers
