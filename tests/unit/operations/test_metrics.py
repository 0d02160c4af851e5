"""Metrics are written in one step, for all to read, and served on loopback alone."""

from __future__ import annotations

import http.client
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.overview.examples import facts
from vbackup.errors import StorageError, UsageError
from vbackup.operations import metrics
from vbackup.operations.metrics import MetricsServer
from vbackup.overview import assess
from vbackup.overview.state import Overview
from vbackup.stop import Stop


def overview() -> Overview:
    return assess.overview(facts())


def test_a_file_is_written_that_node_exporter_can_read(tmp_path: Path) -> None:
    path = tmp_path / "vbackup.prom"
    before = os.umask(0o077)
    try:
        metrics.write(path, overview())
        metrics.write(path, overview())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert b"vbackup_health 0.0\n" in path.read_bytes()
    assert [one.name for one in tmp_path.iterdir()] == ["vbackup.prom"]


def test_a_directory_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"gone/vbackup\.prom"):
        metrics.write(tmp_path / "gone" / "vbackup.prom", overview())


@contextmanager
def served(gather: Callable[[], Overview], host: str = "127.0.0.1") -> Iterator[MetricsServer]:
    stop, ready = Stop(), threading.Event()
    found: list[MetricsServer] = []

    def on_ready(server: MetricsServer) -> None:
        found.append(server)
        ready.set()

    thread = threading.Thread(target=lambda: metrics.serve(host, 0, gather, on_ready, stop=stop))
    thread.start()
    try:
        assert ready.wait(10)
        yield found[0]
    finally:
        stop.request()
        thread.join(10)
    assert not thread.is_alive()


def get(server: MetricsServer, path: str = "/metrics") -> tuple[int, bytes, str]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, answer.headers["Content-Type"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_metrics_are_served_on_loopback(host: str) -> None:
    if host == "::1":
        try:
            with socket.socket(socket.AF_INET6) as probe:
                probe.bind((host, 0))
        except OSError:
            pytest.skip("no IPv6 here")
    with served(overview, host) as server:
        status, body, kind = get(server)
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert b"vbackup_domain_backups" in body
        assert get(server, "/")[0] == 404
        assert server.url.endswith(f":{server.port}/metrics")


def test_two_questions_at_once_cost_one_answer_and_a_later_one_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def gather() -> Overview:
        calls.append(1)
        return overview()

    with served(gather) as server:
        get(server)
        get(server)
        assert len(calls) == 1
        monkeypatch.setattr(metrics, "FRESH_S", 0.0)
    with served(gather) as server:
        get(server)
        get(server)
    assert len(calls) == 3


def test_what_cannot_be_found_out_is_an_error_and_the_server_goes_on() -> None:
    answers: list[Overview | UsageError] = [UsageError("The configuration is broken."), overview()]

    def gather() -> Overview:
        answer = answers.pop(0)
        if isinstance(answer, UsageError):
            raise answer
        return answer

    with served(gather) as server:
        assert get(server)[:2] == (500, b"The configuration is broken.\n")
        assert get(server)[0] == 200


def test_a_client_that_goes_away_disturbs_nobody() -> None:
    with served(overview) as server:
        with socket.create_connection((server.host, server.port)) as client:
            client.sendall(b"GET /metrics HT")
        assert get(server)[0] == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_no_address_is_listened_on_that_others_can_reach(host: str) -> None:
    with pytest.raises(UsageError, match=r"loopback|not an IP address"):
        metrics.serve(host, 0, overview, lambda _: None, stop=Stop())


def test_a_port_that_is_taken_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="Address already in use"):
            metrics.serve("127.0.0.1", taken.getsockname()[1], overview, lambda _: None, stop=Stop())
