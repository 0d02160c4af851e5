"""Arguments of how a backup is made: what every command that makes one offers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vbackup.cli import making, parser, values
from vbackup.errors import UsageError

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.mark.parametrize("words", [["backup", "web"], ["stream", "backup", "web", "--job", "1"]])
def test_every_command_that_makes_backups_has_the_same_options(words: list[str]) -> None:
    options = parser.parse([*words, "--quiesce", "no", "--freeze-limit", "1m", "--disk", "vda", "--speed", "1M"])
    assert (options.quiesce, options.freeze_limit, options.disk, options.speed) == ("no", 60, ["vda"], 1024**2)
    with pytest.raises(UsageError, match="whole number of seconds"):
        parser.parse([*words, "--freeze-limit", "0.5"])


@pytest.mark.parametrize("inner", ["read", "finish"])
def test_stage_is_the_same_for_all_who_work_on_it(inner: str) -> None:
    """What a director's reader makes, its finish has to find."""
    more = ["--exit", "OK"] if inner == "finish" else []
    argv = ["engine", inner, "--domain", "web", "--job-id", "1", "--level", "Full", *more]
    assert parser.parse(argv).stage == making.STAGE == parser.parse(["stream", "commit", "web", "--job", "1"]).stage
    assert parser.parse([*argv, "--stage", "/s"]).stage == Path("/s")


@pytest.mark.parametrize(
    ("text", "host", "ports"),
    [
        ("backup:10809", "backup", [10809]),
        ("back-up:10809-10811", "back-up", [10809, 10810, 10811]),
        ("[fd00::1]:5-5", "fd00::1", [5]),
    ],
)
def test_hosts_have_ports(text: str, host: str, ports: list[int]) -> None:
    found = values.host_and_ports(text)
    assert (found[0], list(found[1])) == (host, ports)


@pytest.mark.parametrize("text", ["", "host", "host:0", "host:9-8", "host:1-65536", "host:1-", "-", "a:b-c", "1-2"])
def test_what_are_no_ports_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not HOST:PORT or HOST:PORT-PORT"):
        values.host_and_ports(text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--transport", "tls"), "--transport tls needs --listen and --tls-creds"),
        (("--transport", "tls", "--listen", "h:1"), "--transport tls needs --tls-creds"),
        (("--listen", "h:1"), "--listen is for --transport tls"),
        (("--transport", "ssh", "--hypervisor-tls-creds", "/x"), "--hypervisor-tls-creds is for --transport tls"),
        (("--transport", "tls", "--hypervisor-tls-creds", "x"), "'x' is not an absolute path"),
    ],
)
def test_tls_is_complete_or_left_out(command: Command, repository: Path, options: tuple[str, ...], said: str) -> None:
    assert said in command("backup", "web", "-r", repository, *options, status=2).stderr
