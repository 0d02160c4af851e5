"""A POST to real servers: good, failing, hanging, with wrong certificates, and with redirects that would leak."""

from __future__ import annotations

import base64
import logging
import socket
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import certificates
from tests.web import Answer, Asked, Web, web
from vbackup.errors import NoticeError, Retry
from vbackup.notices.requests import Post, check_url, send

SECRET = "s3cr3t-T0ken"
BODY = b"what there is to say"


def post(url: str, **headers: str) -> Post:
    return Post("ops", url, BODY, headers)


def failure(url: str, timeout_s: float = 5.0) -> NoticeError:
    """The error of a request, which has nothing of the secret in it, in its causes or in a traceback."""
    with pytest.raises(NoticeError) as caught:
        send(post(url), timeout_s)
    err = caught.value
    whole = "".join(traceback.format_exception(type(err), err, err.__traceback__)) + repr(vars(err))
    assert SECRET not in whole
    assert err.__cause__ is None
    assert err.__context__ is None
    return err


def test_body_and_headers_arrive(server: Web) -> None:
    assert send(post(f"{server.url}/hook/{SECRET}?a=b", **{"X-One": "1"}), 5) == "OK"
    (asked,) = server.asked
    assert (asked.method, asked.path, asked.body) == ("POST", f"/hook/{SECRET}?a=b", BODY)
    assert asked.headers["x-one"] == "1"
    assert asked.headers["user-agent"].startswith("vbackup/")


def test_text_of_a_post_has_no_secret() -> None:
    assert SECRET not in repr(post(f"https://example.org/{SECRET}"))


def test_user_and_password_of_a_url_are_not_sent_in_the_path(server: Web) -> None:
    send(post(server.url.replace("://", f"://me:{SECRET}%40@") + "/x"), 5)
    (asked,) = server.asked
    assert asked.path == "/x"
    assert base64.b64decode(asked.headers["authorization"].split()[1]).decode() == f"me:{SECRET}@"
    assert "@" not in asked.headers["host"]


@pytest.mark.parametrize(
    ("status", "retry"),
    [
        *((status, Retry.NEVER) for status in (300, 303, 304, 400, 401, 403, 404, 410, 418)),
        *((status, Retry.LATER) for status in (408, 425, 429, 500, 502, 503, 504)),
    ],
)
def test_status_says_whether_to_try_again(server: Web, status: int, retry: Retry) -> None:
    server.answers(Answer(status, text=SECRET))
    err = failure(f"{server.url}/{SECRET}")
    assert str(status) in err.reason
    assert err.retry is retry


@pytest.mark.parametrize(("header", "wanted"), [("7", 7.0), ("soon", None), ("9" * 30, None), ("-1", None)])
def test_time_of_the_next_attempt_is_the_servers(server: Web, header: str, wanted: float | None) -> None:
    server.answers(Answer(429, headers={"Retry-After": header}))
    assert failure(server.url).not_before_s == wanted


def test_server_that_closes_the_connection(server: Web) -> None:
    server.answers(Answer(is_dropped=True))
    err = failure(f"{server.url}/{SECRET}")
    assert "closed the connection" in err.reason
    assert err.retry is Retry.LATER


def test_server_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        begun = time.monotonic()
        err = failure(f"http://127.0.0.1:{listening.getsockname()[1]}/{SECRET}", 0.3)
        assert time.monotonic() - begun < 3
    assert "did not answer within 0.3 s" in err.reason
    assert err.retry is Retry.LATER


def test_server_that_sends_a_byte_now_and_then(server: Web) -> None:
    """Each byte is within the limit of a socket."""
    server.answers(Answer(drip_s=0.05))
    begun = time.monotonic()
    assert "did not answer within 0.5 s" in failure(f"{server.url}/{SECRET}", 0.5).reason
    assert time.monotonic() - begun < 3


def test_server_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    err = failure(f"http://127.0.0.1:{port}/{SECRET}")
    assert "Connection refused" in err.reason
    assert err.retry is Retry.LATER


def test_server_that_speaks_something_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            client, _ = listening.accept()
            with client:
                client.sendall(b"220 mail.example.org ESMTP\r\n")
                client.recv(65536)

        thread = threading.Thread(target=greet)
        thread.start()
        err = failure(f"http://127.0.0.1:{listening.getsockname()[1]}/{SECRET}")
        thread.join()
    assert err.retry is Retry.LATER


def test_name_that_cannot_be_resolved() -> None:
    err = failure(f"http://{SECRET.lower()}.invalid/{SECRET}")
    assert "cannot be resolved" in err.reason or "cannot be reached" in err.reason
    assert SECRET.lower() not in str(err)


def test_answer_without_an_end_is_read_in_part(server: Web) -> None:
    server.answers(Answer(text="x" * 100_000))
    assert len(send(post(server.url), 5)) == 4096


# certificates


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return certificates.make(tmp_path / "tls")


def trust(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(path))


def test_certificate_of_a_trusted_authority_is_accepted(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trust(monkeypatch, files / "ca-cert.pem")
    with web(certificates=files) as there:
        assert send(post(f"{there.url}/{SECRET}"), 5) == "OK"


def test_certificate_of_an_unknown_authority_is_refused(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.pem"
    other.write_text(certificates.other_ca(tmp_path / "other"))
    trust(monkeypatch, other)
    with web(certificates=files) as there:
        err = failure(f"{there.url}/{SECRET}")
        assert not there.asked
    assert "certificate is not accepted" in err.reason
    assert err.retry is Retry.NEVER


def test_certificate_for_another_name_is_refused_without_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = certificates.make(tmp_path / "tls", "DNS:backup.example.org")
    trust(monkeypatch, files / "ca-cert.pem")
    with web(certificates=files) as there:
        err = failure(f"{there.url}/{SECRET}")
        assert not there.asked
    assert err.reason.endswith("it is for another name")
    assert "127.0.0.1" not in str(err)


def test_tls_with_a_server_without_tls(server: Web) -> None:
    assert "TLS fails" in failure(server.url.replace("http:", "https:") + f"/{SECRET}").reason


# redirects


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirect_at_the_same_server_is_followed_with_the_body(server: Web, status: int) -> None:
    server.answers(Answer(status, headers={"Location": "/new?x=1"}), Answer())
    assert send(post(f"{server.url}/{SECRET}"), 5) == "OK"
    assert [(one.method, one.path, one.body) for one in server.asked] == [
        ("POST", f"/{SECRET}", BODY),
        ("POST", "/new?x=1", BODY),
    ]


@pytest.mark.parametrize("location", ["http://localhost:{port}/{secret}", "//localhost:{port}/", "http://u:p@{host}/x"])
def test_redirect_to_another_host_is_not_followed(server: Web, location: str) -> None:
    with web() as elsewhere:
        port = elsewhere.url.rpartition(":")[2]
        to = location.format(port=port, secret=SECRET, host=server.url.removeprefix("http://"))
        server.answers(Answer(302, headers={"Location": to}))
        err = failure(server.url.replace("://", f"://me:{SECRET}@") + "/x")
        assert not elsewhere.asked
    assert "redirects to another place" in err.reason
    assert err.retry is Retry.NEVER


def test_redirect_to_another_port_is_not_followed(server: Web) -> None:
    with web() as elsewhere:
        server.answers(Answer(307, headers={"Location": f"{elsewhere.url}/{SECRET}"}))
        failure(f"{server.url}/{SECRET}")
        assert not elsewhere.asked


def test_redirect_from_https_to_http_is_not_followed(files: Path, server: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    trust(monkeypatch, files / "ca-cert.pem")
    with web(certificates=files) as there:
        there.answers(Answer(301, headers={"Location": f"{server.url}/{SECRET}"}))
        failure(f"{there.url}/{SECRET}")
    assert not server.asked


def test_redirect_from_http_to_https_at_the_same_host_is_followed(
    files: Path, server: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(monkeypatch, files / "ca-cert.pem")
    with web(certificates=files) as there:
        server.answers(Answer(301, headers={"Location": f"{there.url}/x"}))
        assert send(post(f"{server.url}/{SECRET}"), 5) == "OK"
        assert [one.path for one in there.asked] == ["/x"]


@pytest.mark.parametrize("location", [None, "", "http://[", "file:///etc/passwd"])
def test_redirect_to_nowhere(server: Web, location: str | None) -> None:
    server.answers(Answer(302, headers={} if location is None else {"Location": location}))
    assert "redirects" in failure(f"{server.url}/{SECRET}").reason


def test_redirect_in_a_circle(server: Web) -> None:
    server.answer = lambda _asked: Answer(302, headers={"Location": f"/{SECRET}"})
    assert "in a circle" in failure(f"{server.url}/{SECRET}").reason
    assert len(server.asked) == 4


# URLs


@pytest.mark.parametrize(
    "url",
    [
        *("", SECRET, f"ftp://example.org/{SECRET}", f"file:///{SECRET}", f"https:///{SECRET}", f"//h/{SECRET}"),
        *(f"https://h/{SECRET} x", f"https://h/{SECRET}\nHost: y", f"https://h:port/{SECRET}", f"https://[/{SECRET}"),
        *(f"https://\u2100/{SECRET}", f"https://h/{SECRET}\x00"),
    ],
)
def test_what_is_no_url_is_refused_without_a_word_of_it(url: str) -> None:
    assert failure(url).retry is Retry.NEVER


@given(st.text(max_size=40))
def test_any_text_is_a_url_or_refused(text: str) -> None:
    for url in (text, f"https://{text}", f"https://example.org/{text}"):
        with suppress(NoticeError):
            assert check_url("ops", url).hostname


def test_log_has_nothing_of_the_url(server: Web, caplog: pytest.LogCaptureFixture) -> None:
    server.answers(Answer(500, text=SECRET), Answer(307, headers={"Location": f"/{SECRET}"}), Answer())
    with caplog.at_level(logging.DEBUG):
        failure(f"{server.url}/{SECRET}")
        send(post(f"{server.url}/{SECRET}"), 5)
    assert SECRET not in caplog.text


def test_proxy_of_the_environment_is_used(server: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    seen: list[Asked] = server.asked
    assert send(post("http://hooks.example.org/x"), 5) == "OK"
    assert [one.path for one in seen] == ["http://hooks.example.org/x"]
