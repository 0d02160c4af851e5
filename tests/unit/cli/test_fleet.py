"""One exit status, one document and one table stand for the backups of several hosts."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.cli.test_batch import result
from vbackup.cli import fleet as printed
from vbackup.cli.parser import parse
from vbackup.domain.fleet import FleetSelection, HostSelection
from vbackup.domain.selection import Selection, Skipped
from vbackup.errors import BusyError, HostUnreachableError, InterruptedBySignalError, UsageError, VbackupError

if TYPE_CHECKING:
    from tests.conftest import Command

LOST = HostUnreachableError("uri of hv2", "refused")


def on(host: str, name: str, error: VbackupError | None = None) -> Any:
    return replace(result(name, error), host=host)


def selection(*errors: VbackupError | None) -> FleetSelection:
    skipped = (Skipped("out", "uuid of out", "why"),)
    return FleetSelection(
        tuple(
            HostSelection(
                f"uri of hv{number}", f"hv{number}", Selection((), skipped if error is None else ()), error=error
            )
            for number, error in enumerate(errors, start=1)
        )
    )


@pytest.mark.parametrize(
    ("results", "hosts", "status"),
    [
        ([None, None], [None, None], 0),
        ([None, BusyError("x")], [None, None], 3),
        ([None, None], [None, LOST], 3),
        ([BusyError("x")], [None, LOST], 3),
        ([], [LOST, LOST], 4),
        ([], [None, LOST], 4),
        ([InterruptedBySignalError(signal.SIGINT)], [None, LOST], 130),
    ],
)
def test_exit_status(results: list[VbackupError | None], hosts: list[VbackupError | None], status: int) -> None:
    assert printed._status([on("hv1", "a", error) for error in results], selection(*hosts)) == status


def test_document_has_hosts_and_whose_each_domain_is() -> None:
    document = printed._document(
        [on("hv1", "a"), on("hv1", "b", BusyError("busy"))], selection(None, LOST), duration_s=1.5
    )
    first, second = document["hosts"]
    assert first == {"name": "hv1", "uri": "uri of hv1"}
    assert (second["name"], second["error"]["code"]) == ("hv2", "HOST_UNREACHABLE")
    assert [(one["host"], one["name"]) for one in document["domains"]] == [("hv1", "a"), ("hv1", "b")]
    assert document["left_out"] == [{"name": "out", "uuid": "uuid of out", "reason": "why", "host": "hv1"}]
    assert (document["done"], document["failed"]) == (1, 1)


def test_table_has_all_hosts(capsys: pytest.CaptureFixture[str]) -> None:
    results, selected = [on("hv1", "a"), on("hv1", "b", BusyError("busy"))], selection(None, LOST)
    printed._print(results, selected, duration_s=1.5, dry_run=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["HOST", "DOMAIN", "LEVEL", "COPIED", "SIZE", "TIME", "RESULT"]
    assert [line.split()[:2] for line in lines[1:4]] == [["hv1", "a"], ["hv1", "b"], ["hv2", "-"]]
    assert "failed: Cannot reach libvirt at uri of hv2" in lines[3]
    assert lines[4:] == ["Left out: hv1/out (why)", "1 of 2 domains on 1 of 2 hosts backed up in 1.5 s."]
    assert printed._failure(results, selected) == "1 of 2 domains failed. Nothing was backed up on 1 of 2 hosts: hv2."
    assert printed._failure([on("hv1", "a")], selection(None)) is None


@pytest.mark.parametrize(
    ("arguments", "uris"),
    [
        (["backup", "--all"], []),
        (["-c", "a", "-c", "b", "backup", "--all"], ["a", "b"]),
        (["backup", "--all", "-c", "a", "-c", "b", "-c", "a"], ["a", "b"]),
        (["-c", "a", "-c", "b", "backup", "--all", "-c", "c"], ["c"]),  # what is given after the command counts
        (["-c", "a", "verify", "web", "-c", "b"], ["b"]),
        (["-c", "a", "list", "-c", "b"], ["b"]),  # which asks no libvirt
        (["-c", "a", "verify", "web", "-c", "a"], ["a"]),
        (["session", "list", "-c", "a"], ["a"]),
    ],
)
def test_hosts_are_named_before_or_after_the_command(arguments: list[str], uris: list[str]) -> None:
    assert parse(arguments).uris == uris


@pytest.mark.parametrize(
    "arguments",
    [["-c", "a", "-c", "b", "verify", "web"], ["audit", "web", "-c", "a", "-c", "b"]],
)
def test_command_for_one_host_refuses_several(arguments: list[str]) -> None:
    with pytest.raises(
        UsageError, match=r"-c is given for 2 hosts \(a, b\), and 'vbackup (verify|audit)' works on one"
    ):
        parse(arguments)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-c", "a:///", "-c", "b:///", "--group", "--all"), "A group has one moment and one host"),
        (("--parallel-per-host", "2", "--all"), "--parallel-per-host is for several hosts"),
        (("--hosts", "HOSTS", "--all"), "HOSTS:2: 'hv2' is not a libvirt URI"),
        (("--hosts", "", "--all"), "the path is empty"),
        (("-c", "", "-c", "b:///", "--all"), "One of the URIs given with -c is empty"),
    ],
)
def test_bad_input_is_refused_before_anything_is_reached(
    command: Command, repository: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    (tmp_path / "HOSTS").write_text("qemu:///system\nhv2\n")
    given = [str(tmp_path / word) if word == "HOSTS" else word for word in words]
    assert said in command("backup", *given, "-r", repository, status=2).stderr
