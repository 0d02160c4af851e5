"""Pings arrive as healthchecks.io takes them: start, success and failure of one run, with the end of the log."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.notices.runs import run
from tests.web import Answer, Web
from vbackup.errors import NoticeError, Retry
from vbackup.notices import ping
from vbackup.notices.ping import MAX_BYTES, Signal, run_id, tail


def test_pings_of_a_run_have_one_id(server: Web) -> None:
    rid = run_id(run())
    for signal in (Signal.START, Signal.SUCCESS, Signal.FAIL, Signal.LOG):
        ping.send("ops", f"{server.url}/ping/uuid", signal, rid=rid, text="text", timeout_s=5)
    assert [urlsplit(one.path).path for one in server.asked] == [
        "/ping/uuid/start",
        "/ping/uuid",
        "/ping/uuid/fail",
        "/ping/uuid/log",
    ]
    assert {tuple(parse_qs(urlsplit(one.path).query)["rid"]) for one in server.asked} == {(str(rid),)}
    assert {(one.method, one.body) for one in server.asked} == {("POST", b"text")}


def test_other_runs_have_other_ids() -> None:
    ids = {run_id(run()), run_id(run(number=1)), run_id(run(job="weekly")), run_id(run(host="hv2"))}
    assert len(ids) == 4
    assert run_id(run()) == run_id(run("web"))


def test_query_of_the_url_stays(server: Web) -> None:
    ping.send("ops", f"{server.url}/key/slug/?create=1", Signal.FAIL, rid=run_id(run()), text="", timeout_s=5)
    assert server.asked[0].path == f"/key/slug/fail?create=1&rid={run_id(run())}"


@pytest.mark.parametrize(("answer", "retry"), [("OK (not found)", Retry.NEVER), ("OK (rate limited)", Retry.LATER)])
def test_server_that_does_not_take_it_says_so_with_status_200(server: Web, answer: str, retry: Retry) -> None:
    server.answers(Answer(text=answer))
    with pytest.raises(NoticeError) as caught:
        ping.send("ops", server.url, Signal.SUCCESS, rid=None, text="", timeout_s=5)
    assert caught.value.retry is retry


def test_long_text_is_sent_from_the_beginning_of_a_line(server: Web) -> None:
    lines = [f"line {number}" for number in range(20_000)]
    ping.send("ops", server.url, Signal.FAIL, rid=None, text="\n".join(lines), timeout_s=5)
    got = server.asked[0].body.decode().splitlines()
    assert len(server.asked[0].body) <= MAX_BYTES
    assert got[0] == "[...]"
    assert got[1:] == lines[-len(got) + 1 :]
    assert len(server.asked[0].body) > MAX_BYTES - 20


@given(st.sampled_from(("x", "ä", "€", "\U0001f600")), st.integers(min_value=0, max_value=9))
def test_long_line_is_cut_between_characters(char: str, more: int) -> None:
    data = tail("." * more + char * MAX_BYTES)
    assert len(data) <= MAX_BYTES
    assert set(data.decode().removeprefix("[...]\n")) <= {char, "."}


@given(st.text())
def test_short_text_is_sent_as_it_is(text: str) -> None:
    assert tail(text) == text.encode("utf-8", "replace")
