"""Exit statuses and codes are an interface: each error class has one of each, and they do not change."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests import documents
from vbackup import errors, schemas
from vbackup.errors import Status, VbackupError, error_document

#: One of each, with its exit status (design: 0 to 9, 128 + the signal).
EXAMPLES: list[tuple[VbackupError, int]] = [
    (errors.VbackupError("x"), 1),
    (errors.ApplianceError("x"), 1),
    (errors.ApplianceRefusedError("ls0", "no"), 1),
    (errors.UsageError("x"), 2),
    (errors.ConfigError("/etc/vbackup/vbackup.toml", 12, "Unknown key 'x'."), 2),
    (errors.NoConfigError("/etc/vbackup/vbackup.toml", 0, "There is none."), 2),
    (errors.SecretError("file /x", "others can read it"), 1),
    (errors.MalformedError("x"), 1),
    (errors.HostUnreachableError("qemu:///system", "refused"), 4),
    (errors.SshError("root@hv1", "Host key verification failed.", try_first="ssh hv1 true"), 4),
    (errors.LinkLostError("root@hv1", "was silent for 20 s"), 4),
    (errors.RemoteError("root@hv1", "read /x", "No such file or directory", errno=2), 1),
    (errors.HelperError("root@hv1", "python3: not found"), 5),
    (errors.ForwardingError("root@hv1", "forwarding is not allowed"), 5),
    (errors.ConnectionLostError("x"), 4),
    (errors.InstallationError("lxml.etree", "3.13.1", "cannot import name 'etree'"), 1),
    (errors.InstallationError("qemu.qmp", "3.11.2", "No module named 'qemu'"), 1),
    (errors.DomainNotFoundError("web", "in /r", "'vbackup list' lists them"), 4),
    (errors.AmbiguousNameError("web", "/r", ["u1", "u2"]), 4),
    (errors.NoBackupRunningError("web"), 4),
    (errors.QemuGoneError("x"), 1),
    (errors.DomainGoneError("web"), 1),
    (errors.LiveRestoreEndedError("web", advice="x"), 1),
    (errors.StorageDaemonGoneError("was killed by SIGKILL", "x"), 1),
    (errors.UnsuitableError("x"), 5),
    (errors.DiskError("vda", "x"), 5),
    (errors.PartialBackupError("X", ["vdb"], complete=None), 5),
    (errors.AmbiguousHostError({"one": "X", "two": "Y"}, "Y"), 5),
    (errors.SameUuidError("web", "uuid", ["hv1", "hv2"]), 5),
    (errors.CorruptImageError("vda", "/x"), 5),
    (errors.QuiesceError("x"), 5),
    (errors.MonitorError("x"), 1),
    (errors.FdsNotPassedError("x"), 1),
    (errors.FdsNotNeededError("x"), 1),
    (errors.QmpError("query-x", "GenericError", "x"), 1),
    (errors.TransactionError("actions[3].data.bitmap-mode", "x"), 2),
    (errors.TransactionRefusedError("x", 1, "abort"), 1),
    (errors.UnsafeError("actions[0].data.node", "x"), 5),
    (errors.JobError("vda", "x"), 1),
    (errors.JobStalledError(600.0), 1),
    (errors.UnknownSessionError("s"), 6),
    (errors.UnknownTrackerError("t", "web", ["u"]), 6),
    (errors.UnknownCheckpointError("c", "t", ["d"]), 6),
    (errors.SessionEndedError("s", "expired"), 6),
    (errors.SessionAliveError("s", "t", "2026-11-23T12:00:00Z"), 8),
    (errors.StreamError("x"), 6),
    (errors.StreamNotPendingError("web", "7", why="x"), 6),
    (errors.ConsumerGoneError(), 141),
    (errors.MissingPackageError("zstandard", "x", debian="python3-zstandard"), 1),
    (errors.ChainError("x"), 6),
    (errors.BaseError("vda", "incremental", "X", "x"), 6),
    (errors.IdentityError("x"), 6),
    (errors.IdentityNeededError("s3://bucket/x"), 6),
    (errors.SealedError("/mnt/copy", "u/X-full/vda.qcow2.age", "it was cut"), 6),
    (errors.DamagedError("vda", image="/r/vda.qcow2", backup="X", start_bytes=0, length_bytes=65536), 6),
    (errors.OutputDiffersError("vda", "/o/vda.qcow2", 65536), 6),
    (errors.CopiedError("/srv/copy", "X-full", "f0000000"), 6),
    (errors.NeededError("X-full", ["protected"], "'vbackup unprotect X-full' ends that."), 6),
    (errors.NewerJournalError("X-full", "f0000000", schema="vbackup.journal/2", known="vbackup.journal/1"), 7),
    (errors.UnknownSessionError("20261123T120001Z-000001"), 6),
    (errors.UnknownTrackerError("acme", "web", ["other"]), 6),
    (errors.UnknownCheckpointError("X-full", "acme", []), 6),
    (errors.SessionEndedError("20261123T120001Z-000001", "expired"), 6),
    (errors.SessionAliveError("20261123T120001Z-000001", "acme", "2026-11-23T12:00:01Z"), 8),
    (errors.StorageError("x"), 7),
    (errors.StoreUnreachableError("backup.example.org", "ssh: Connection refused"), 4),
    (errors.NoSpaceError("x"), 7),
    (errors.UnsafeScriptError("/x", "can be written by others than its owner"), 7),
    (errors.ScriptError("pre-backup", "/x", "ended with exit status 1", exit_status=1, state="x"), 9),
    (errors.NoticeError("ops", "the server answers 404"), 1),
    (errors.RestoredOnlyError(errors.MonitorError("x."), "y."), 1),
    (errors.RestoredOnlyError(errors.UnsuitableError("x."), "y."), 5),
    (errors.PartlyCopiedError(errors.UnsuitableError("x."), "y"), 5),
    (errors.BusyError("x"), 8),
    (errors.DiskBusyError("vda", "commit", "commit-vda-x", by_libvirt=False), 8),
    (errors.StateLockedError("web", "x"), 8),
    (errors.MigratingError("web", incoming=True), 8),
    (errors.InactiveError("Domain web", "paused", resume="'virsh resume web'"), 8),
    (errors.NotLoadedError("vda", "/x", ["b"]), 8),
    (errors.GroupError("web", errors.NoSpaceError("x")), 7),
    (errors.InterruptedBySignalError(signal.SIGINT), 130),
    (errors.InterruptedBySignalError(signal.SIGTERM), 143),
    (errors.InterruptedBySignalError(signal.SIGHUP), 129),
]


def all_classes(base: type[VbackupError] = VbackupError) -> set[type[VbackupError]]:
    return {base}.union(*(all_classes(one) for one in base.__subclasses__() if one.__module__.startswith("vbackup.")))


@pytest.mark.parametrize(("error", "status"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_error_owns_its_exit_status(error: VbackupError, status: int) -> None:
    assert error.status == status


def test_no_error_class_is_forgotten_here() -> None:
    known = {type(error) for error, _ in EXAMPLES}
    assert {one for one in all_classes() if one.__module__ == "vbackup.errors"} == known


def test_command_for_people_has_the_libvirt_that_was_given() -> None:
    uri = "qemu+ssh://root@hv1/system?keyfile=/k"
    assert errors.command("virsh resume web", None) == "virsh resume web"
    assert errors.command("virsh resume web", uri) == f"virsh -c '{uri}' resume web"  # which takes it there only
    assert errors.command("vbackup forget web --force", "qemu:///session") == (
        "vbackup forget web --force -c qemu:///session"
    )


# codes


CODES = Path(__file__).parents[1] / "fixtures" / "codes.json"


@pytest.mark.parametrize("one", sorted(all_classes(), key=lambda one: one.__name__), ids=lambda one: one.__name__)
def test_class_has_a_code_that_no_other_has(one: type[VbackupError]) -> None:
    assert "code" in vars(one), f"{one.__name__} needs a code: vbackup-json(7), ERRORS, and tests/fixtures/codes.json"
    assert re.fullmatch(r"[A-Z]+(_[A-Z]+)*", one.code)
    assert [other for other in all_classes() if other.code == one.code] == [one]


def test_codes_are_those_that_were_published() -> None:
    """A code that is there stays, with its meaning: status and retry are a part of that. New ones are added."""
    recorded = json.loads(CODES.read_text())
    current = {one.code: {"status": int(one.status), "retry": one.retry.value} for one in all_classes()}
    assert recorded == current, "codes that are in the file stay as they are; add new ones to it"


@pytest.mark.parametrize("error", [error for error, _ in EXAMPLES], ids=lambda error: type(error).__name__)
def test_document_of_an_error_is_as_its_schema_says(error: VbackupError) -> None:
    document = error_document(error)
    documents.check(json.loads(json.dumps(document)))  # without the default that a document is printed with
    assert document["details"] == document["evidence"]
    schema = schemas.load("vbackup.error/1")
    described = {
        each["if"]["properties"]["code"]["const"]: each["then"]["properties"]["details"] for each in schema["allOf"]
    }
    assert document["details"].keys() == described.get(error.code, {"properties": {}})["properties"].keys()


def test_codes_in_the_schema_are_those_of_the_classes() -> None:
    known = schemas.load("vbackup.error/1")["properties"]["code"]["anyOf"][0]["enum"]
    assert sorted(known) == sorted(one.code for one in all_classes())


def test_error_with_a_cause_retries_as_that_does() -> None:
    full = errors.NoSpaceError("x")
    group = errors.GroupError("web", full)
    assert (group.retry, group.evidence()["cause"]) == (full.retry, "NO_SPACE")


def test_command_whose_first_results_stay_is_not_given_again() -> None:
    full = errors.NoSpaceError("x")
    for error in (errors.RestoredOnlyError(full, "y"), errors.PartlyCopiedError(full, "y")):
        assert (error.retry, error.evidence()["cause"]) == (errors.Retry.NEVER, "NO_SPACE")


def test_statuses_are_those_of_the_manual() -> None:
    assert {status.name: int(status) for status in Status} == {
        "DONE": 0,
        "FAILED": 1,
        "USAGE": 2,
        "SOME_FAILED": 3,
        "NOT_FOUND": 4,
        "UNSUITABLE": 5,
        "CHAIN": 6,
        "STORAGE": 7,
        "BUSY": 8,
        "SCRIPT": 9,
        "SIGNAL": 128,
    }


@pytest.mark.parametrize(
    ("error", "evidence"),
    [
        (errors.DiskError("vda", "x", cause="y"), {"dev": "vda"}),
        (
            errors.QmpError("query-x", "GenericError", "x"),
            {"command": "query-x", "error_class": "GenericError", "description": "x"},
        ),
        (
            errors.BaseError("vda", "incremental", "X", "x"),
            {"dev": "vda", "level": "incremental", "checkpoint": "X", "reason": "x"},
        ),
        (errors.TransactionError("actions[3].data.name", "x"), {"path": "actions[3].data.name", "action": 3}),
        (errors.TransactionError("properties", "x"), {"path": "properties", "action": None}),
        (errors.UsageError("x"), {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_evidence_is_typed(error: VbackupError, evidence: dict[str, Any]) -> None:
    assert error.evidence() == evidence


@pytest.mark.parametrize("error", [error for error, _ in EXAMPLES if type(error).__init__ is not Exception.__init__])
def test_text_is_a_sentence_about_what_happened(error: VbackupError) -> None:
    text = str(error)
    assert text
    assert ".." not in text
    for name, value in error.evidence().items():
        if isinstance(value, str) and name != "cause":  # which is a code
            assert value in text or value == "GenericError"


@pytest.mark.parametrize(
    ("name", "word"), [("web", "web"), ("-dash", "--domain=-dash"), ("my vm", "'my vm'"), ("- x", "'--domain=- x'")]
)
def test_name_of_a_domain_in_a_command_is_one_word_and_no_option(name: str, word: str) -> None:
    assert errors.domain_argument(name) == word
    assert f"'vbackup list {word}' shows" in str(errors.AmbiguousNameError(name, "/r", ["a"]))


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("qemu.qmp", "on Debian, it installs qemu.qmp from PyPI (from Debian 14 on, the package python3-qemu-qmp)."),
        ("lxml.etree", "on Debian, it installs the package python3-lxml."),
        ("libvirtmod", "on Debian, it installs the package python3-libvirt."),
        ("ssl", "Run 'make install' in the sources of vbackup again."),
    ],
)
def test_missing_module_is_told_with_the_package_that_has_it(module: str, said: str) -> None:
    assert str(errors.InstallationError(module, "3.11.2", f"No module named {module!r}")).endswith(said)


@pytest.mark.parametrize(
    ("text", "is_disabled"),
    [
        ("Command guest-fsfreeze-freeze has been disabled: the agent is in frozen state", True),
        ("The command guest-fsfreeze-freeze has been disabled for this instance", True),
        ("failed to freeze /log: Input/output error", False),
    ],
)
def test_command_that_the_agent_did_not_carry_out_is_recognised(text: str, is_disabled: bool) -> None:
    assert errors.QemuText(text).is_of_disabled_command is is_disabled


def test_base_error_names_the_remedy() -> None:
    text = str(errors.BaseError("vda", "incremental", "X", "checkpoint X is inconsistent"))
    assert "Disk vda" in text
    assert "checkpoint X is inconsistent" in text
    assert "full" in text


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("authentication unavailable: no polkit agent", "Run vbackup as root, or as a member of the group libvirt."),
        ("Failed to connect socket to '/x': Permission denied", "Run vbackup as root"),
        ("Failed to connect socket to '/x': No such file or directory", "'systemctl start libvirtd' starts it"),
        ("no connection driver available for foo:///", "Give a URI such as qemu:///system"),
        ("Cannot recv data: Host key verification failed", "'virsh -c u:///x list' has to work first."),
    ],
)
def test_unreachable_libvirt_has_its_remedy(message: str, remedy: str) -> None:
    assert remedy in str(errors.HostUnreachableError("u:///x", message))


@pytest.mark.parametrize(
    ("reason", "is_not_found"),
    [
        ("lstatns: /x: No such file or directory", True),
        ("lstatns: /x/y: Not a directory", True),
        ("download: /x: is a directory.", False),
    ],
)
def test_refusal_of_libguestfs_says_what_was_missing(reason: str, is_not_found: bool) -> None:
    err = errors.ApplianceRefusedError("lstatns", reason)
    assert err.is_not_found is is_not_found
    assert not err.reason.endswith(".")
    assert err.status == Status.FAILED
