"""POST something to a URL that is a secret: over verified TLS, in time, and without a word of the URL in what is said.

Proxies are those of the environment (HTTPS_PROXY), authorities those of the system (or SSL_CERT_FILE). A redirect to
another host, or from HTTPS to HTTP, is not followed: the URL, or the host that it leads to, would learn the secret.
"""

from __future__ import annotations

import base64
import functools
import http.client
import socket
import ssl
import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Union
from urllib.parse import SplitResult, unquote, urljoin, urlsplit, urlunsplit
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, ProxyHandler, Request, UnknownHandler

import vbackup
from vbackup.errors import NoticeError, Retry
from vbackup.notices import attempts

#: The POST is repeated at the new place; 303 would ask for another thing.
_REDIRECTS = frozenset((301, 302, 307, 308))
_MAX_REDIRECTS = 3
#: Answers after which the same request can be accepted later, beside those of a server that failed (5xx).
_LATER = frozenset((408, 425, 429))
_GOOD = range(200, 300)
_SERVER_FAILED = range(500, 600)
_MAX_DELAY_DIGITS = 6
_MAX_ANSWER_BYTES = 4096
#: X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH: OpenSSL's message has the name.
_OTHER_NAME = frozenset((62, 64))

_Answer = Union[http.client.HTTPResponse, "urllib.error.HTTPError"]


@dataclass(frozen=True)
class Post:
    """A request. Its text form has no secret."""

    notifier: str  #: its name, for errors
    url: str = field(repr=False)
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Reply:
    status: int
    reason: str
    location: str | None
    retry_after: str | None
    text: str


def check_url(notifier: str, url: str) -> SplitResult:
    """Return the parts of an HTTP URL. Raises NoticeError, which says nothing of the URL."""
    parts = _parts(url)
    if parts is None:
        raise NoticeError(
            notifier,
            "its secret is not a URL such as https://HOST/... or http://HOST:PORT/..., with a port up to 65535 if there"
            " is one, and without blanks and characters beyond ASCII",
            retry=Retry.NEVER,
        )
    return parts


def _parts(url: str) -> SplitResult | None:
    # All of it printable and without blanks, which http.client refuses with the URL in its message.
    if not url.isprintable() or not url.isascii() or " " in url:
        return None
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is none
    except ValueError:
        return None
    return parts if parts.scheme in ("http", "https") and parts.hostname else None


def send(post: Post, timeout_s: float) -> str:
    """Send the request; return what the server answered, up to 4096 bytes.

    Raises NoticeError, without anything of the URL in it or in what it was caused by: ``retry`` is never where the same
    request cannot be accepted later.
    """
    found = _outcome(post, timeout_s)
    if isinstance(found, NoticeError):
        raise found
    return found


def _outcome(post: Post, timeout_s: float) -> str | NoticeError:
    """Return the answer or the error, outside of any handler: an exception has those that it was raised in."""
    url = urlunsplit(check_url(post.notifier, post.url))
    try:
        for _ in range(_MAX_REDIRECTS + 1):
            reply = attempts.bounded(functools.partial(_once, post, url, timeout_s), timeout_s)
            if reply.status not in _REDIRECTS:
                return _judged(post.notifier, reply)
            new = _redirected(url, reply.location)
            if new is None:
                return NoticeError(
                    post.notifier,
                    "the server redirects to another place, which is not followed because it would learn the secret;"
                    " if that place is right, put its URL into the secret",
                    retry=Retry.NEVER,
                )
            url = new
    except Exception as err:  # noqa: BLE001 - of urllib, http.client, ssl, socket; its text can have the URL
        reason, retry = _why(err, timeout_s)
        return NoticeError(post.notifier, reason, retry=retry)
    return NoticeError(post.notifier, "the server redirects in a circle", retry=Retry.NEVER)


def _once(post: Post, url: str, timeout_s: float) -> _Reply:
    parts = urlsplit(url)
    headers = {"User-Agent": f"vbackup/{vbackup.__version__}", **post.headers}
    if "@" in parts.netloc:
        user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    netloc = parts.netloc.rpartition("@")[2]
    bare = urlunsplit(parts._replace(netloc=netloc, fragment=""))
    request = Request(bare, post.body, headers, method="POST")  # noqa: S310 - check_url and _opener
    answer: _Answer = _opener().open(request, timeout=timeout_s)
    with answer:
        return _Reply(
            status=answer.status or 0,
            reason=answer.reason,
            location=answer.headers.get("Location"),
            retry_after=answer.headers.get("Retry-After"),
            text=answer.read(_MAX_ANSWER_BYTES).decode(errors="replace"),
        )


def _opener() -> OpenerDirector:
    """Return what opens a URL and nothing else: without the handlers of redirects, errors, files and FTP."""
    opener = OpenerDirector()
    opener.addheaders = []
    https = HTTPSHandler(context=ssl.create_default_context())
    for handler in (ProxyHandler(), HTTPHandler(), https, UnknownHandler()):
        opener.add_handler(handler)
    return opener


def _judged(notifier: str, reply: _Reply) -> str | NoticeError:
    if reply.status in _GOOD:
        return reply.text
    words = http.client.responses.get(reply.status, "")
    retry = Retry.LATER if reply.status in _LATER or reply.status in _SERVER_FAILED else Retry.NEVER
    after = reply.retry_after or ""
    return NoticeError(
        notifier,
        f"the server answers {reply.status}{f' ({words})' if words else ''}{_advice(reply.status)}",
        retry=retry,
        not_before_s=float(after) if after.isdecimal() and len(after) <= _MAX_DELAY_DIGITS else None,
    )


def _advice(status: int) -> str:
    if status in (401, 403):
        return ": the URL has no right to send there, or not any more"
    if status in (404, 410):
        return ": it does not know the URL; compare it with the one that the server shows"
    return ""


def _redirected(url: str, location: str | None) -> str | None:
    """Return where a redirect leads, if that is at the same host and not less safe."""
    if not location:
        return None
    try:
        new = urljoin(url, location)
    except ValueError:
        return None
    to, of = _parts(new), _parts(url)
    if to is None or of is None or to.hostname != of.hostname or "@" in to.netloc:
        return None
    is_same = (to.scheme, to.port) == (of.scheme, of.port)
    is_upgrade = (of.scheme, to.scheme) == ("http", "https")
    if not (is_same or is_upgrade):
        return None
    user, at, _ = of.netloc.rpartition("@")
    return urlunsplit(to._replace(netloc=f"{user}{at}{to.netloc}"))


def _why(err: BaseException, timeout_s: float) -> tuple[str, Retry]:
    """Return what is wrong, in words that have nothing of the URL, and whether another attempt makes sense."""
    if isinstance(err, urllib.error.URLError) and isinstance(err.reason, BaseException):
        err = err.reason
    if isinstance(err, ssl.SSLCertVerificationError):
        is_other = err.verify_code in _OTHER_NAME
        why = "it is for another name" if is_other else str(err.verify_message).rstrip(".")
        return f"the server's certificate is not accepted: {why}", Retry.NEVER
    for kinds, reason in (
        ((ssl.SSLError,), f"TLS fails ({str(getattr(err, 'reason', err)).replace('_', ' ').lower()})"),
        ((socket.gaierror,), "the name of the server cannot be resolved"),
        # Two classes up to Python 3.9.
        ((TimeoutError, socket.timeout), f"the server did not answer within {timeout_s:.3g} s"),
        ((http.client.RemoteDisconnected,), "the server closed the connection without an answer"),
        ((OSError,), f"the server cannot be reached: {getattr(err, 'strerror', None) or type(err).__name__}"),
        ((http.client.HTTPException,), "the server does not answer as HTTP wants it"),
    ):
        if isinstance(err, kinds):
            return reason, Retry.LATER
    return f"the request cannot be made ({type(err).__name__})", Retry.NEVER
