"""Each fault that only libvirt, repositories, targets or files show has the place of its key; nothing is changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import fixture_xml
from vbackup.config import loading
from vbackup.copies import target
from vbackup.errors import HostUnreachableError, InterruptedBySignalError
from vbackup.notices import mail
from vbackup.operations import config_check
from vbackup.operations.config_check import CheckedConfig, CheckedDomain
from vbackup.repository.repository import Repository
from vbackup.stop import Stop
from vbackup.stores import opening

UUIDS = [f"0000000{number}-0000-4000-8000-000000000000" for number in range(9)]


class FakeHost:
    """A libvirt with domains."""

    is_local = True
    has_link = False

    def __init__(self, uri: str, *names: str) -> None:
        self.real_uri = uri
        self.is_closed = True
        self.handles = [FakeHandle(name, UUIDS[number], self) for number, name in enumerate(names)]

    def domains(self) -> list[FakeHandle]:
        return self.handles

    def close(self) -> None:
        self.is_closed = True


@dataclass
class FakeHandle:
    """A domain, which is one that runs in Xen if its name says so."""

    name: str
    uuid: str
    host: FakeHost = field(repr=False)

    def is_active(self) -> bool:
        return True

    def live_xml(self) -> str:
        xml = fixture_xml("bitmaps")
        return (
            xml.replace("type='kvm'", "type='xen'").replace("type='qemu'", "type='xen'") if "xen" in self.name else xml
        )


Check = Callable[..., CheckedConfig]


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeHost]:
    """The libvirts that can be reached, by their URIs; "" is the default one."""
    reachable = {"": FakeHost("qemu:///system", "web1", "web2", "db")}

    def connect(uri: str | None) -> FakeHost:
        if (uri or "") not in reachable:
            raise HostUnreachableError(uri, "no route")
        reachable[uri or ""].is_closed = False
        return reachable[uri or ""]

    monkeypatch.setattr(config_check, "Host", connect)
    return reachable


@pytest.fixture
def check(tmp_path: Path, hosts: dict[str, FakeHost]) -> Check:
    """Check a configuration with the repository ``main`` in its first two lines."""
    Repository.create(tmp_path / "repository")

    def checked(text: str, **options: Any) -> CheckedConfig:
        path = tmp_path / "x.toml"
        path.write_text(f"[repository.main]\npath = '{tmp_path}/repository'\n{text}")
        found = config_check.check(loading.load([path]), **options)
        assert all(host.is_closed for host in hosts.values()) or options
        return found

    return checked


def faults(found: CheckedConfig) -> list[tuple[int, str]]:
    return [(one.line, one.fault) for one in found.faults]


def warnings(found: CheckedConfig) -> list[tuple[int, str]]:
    return [(one.line, one.fault) for one in found.warnings]


def test_configuration_that_can_be_used(check: Check, tmp_path: Path) -> None:
    found = (
        check("[job.nightly]\nat = '01:00'\n[notify.ops]\nmail-to='root'\n")
        if shutil.which("sendmail")
        else check("[job.nightly]\nat = '01:00'\nnotify = []\n")
    )
    assert found.faults == ()
    (job,) = found.jobs
    assert (job.name, job.repository) == ("nightly", "main")
    assert job.domains == tuple(CheckedDomain(name, "qemu:///system") for name in ("web1", "web2", "db"))
    assert job.next is not None
    assert found.paths == (tmp_path / "x.toml",)


def test_offline_only_the_files_are_read(check: Check, hosts: dict[str, FakeHost]) -> None:
    hosts.clear()
    found = check("[job.a]\n[repository.b]\npath = '/nowhere'\n[job.b]\nrepository = 'b'\n", is_offline=True)
    assert len(found.faults) == 1  # job a does not say which repository
    assert (found.is_offline, found.jobs) == (True, ())


def test_faults_of_the_files_are_among_the_others(check: Check) -> None:
    found = check("[job.a]\ndomains = ['nope*']\nx = 1\n")
    assert [line for line, _ in faults(found)] == [4, 4, 5]


# Domains


def test_pattern_that_matches_nothing_has_its_place(check: Check) -> None:
    found = check("[job.a]\ndomains = ['web*', 'mail*', 'gone']\nexclude = ['test-*']\n")
    assert faults(found) == [
        (4, "Job a: 'mail*' matches no domain."),
        (4, "Job a: libvirt has no domain 'gone'."),
    ]
    assert (5, "Job a: 'test-*' in 'exclude' matches no domain.") in warnings(found)
    assert [one.name for one in found.jobs[0].domains] == ["web1", "web2"]


def test_job_without_domains_is_a_fault(check: Check) -> None:
    assert faults(check("[job.a]\nexclude = ['*']\n")) == [(3, "Job a: there is no domain to back up.")]


def test_domain_of_one_of_several_hosts_is_there(check: Check, hosts: dict[str, FakeHost]) -> None:
    hosts["a"], hosts["b"] = FakeHost("qemu:///a", "web"), FakeHost("qemu:///b", "db", "xen-old")
    found = check("[job.a]\nconnect = ['a', 'b']\ndomains = ['web', 'd*', 'nope']\n")
    assert faults(found) == [(5, "Job a: libvirt has no domain 'nope'.")]
    assert set(found.jobs[0].domains) == {CheckedDomain("web", "qemu:///a"), CheckedDomain("db", "qemu:///b")}
    found = check("[job.a]\nconnect = ['a', 'b']\n")
    (left,) = [one for one in found.jobs[0].domains if one.left_out is not None]
    assert (left.name, left.left_out) == ("xen-old", "it runs in xen, not in QEMU or KVM")


def test_host_that_is_out_of_reach_is_told_once_and_hides_nothing_else(check: Check, tmp_path: Path) -> None:
    found = check("[job.a]\nconnect = ['far']\ndomains = ['x*']\n[job.b]\nconnect = ['far']\n")
    (fault,) = faults(found)
    assert fault[0] == 4
    assert "no route" in fault[1]
    (tmp_path / "hosts").write_text("qemu:///system\nnot a uri\n")
    found = check(f"[job.a]\nhosts = '{tmp_path}/hosts'\n")
    assert [(line, "hosts:2" in text) for line, text in faults(found)] == [(4, True)]


def test_domain_that_two_jobs_prune_by_other_rules_is_told_once(check: Check) -> None:
    two = "[job.a]\nexclude = ['x']\n[job.a.prune]\nkeep-daily = 7\n[job.b]\ndomains = ['web1']\n[job.b.prune]\n"
    found = [text for _, text in warnings(check(two + "keep-hourly = 48\n")) if "No backup of" in text]
    assert [one.partition(":")[0] for one in found] == ["No backup of domain web1 is removed"]
    assert "it belongs to jobs a and b" in found[0]
    assert not any("No backup of" in text for _, text in warnings(check(two + "keep-daily = 7\n")))


def test_domain_that_no_job_backs_up_is_told(check: Check) -> None:
    found = check("[job.a]\ndomains = ['web*']\n")
    assert (0, "No job backs up domain db at qemu:///system.") in warnings(found)
    assert not any("No job backs up" in text for _, text in warnings(check("[job.a]\n")))


# Repositories and targets


def test_place_without_a_repository_is_a_fault(check: Check) -> None:
    found = check("[repository.b]\npath = '/nowhere/b'\n[job.a]\nrepository='b'\n")
    assert [(line, "is not a vbackup repository" in text) for line, text in faults(found)] == [(4, True)]


def test_empty_place_can_become_a_target(check: Check, tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    text = f"[target.t]\nurl = '{tmp_path}/copies'\n[job.a]\ncopy-to = ['t']\n"
    assert faults(check(text)) == []
    assert list((tmp_path / "copies").iterdir()) == []
    (tmp_path / "copies" / "photo.jpg").touch()
    assert [(line, "not empty: it has 'photo.jpg'" in said) for line, said in faults(check(text))] == [(4, True)]


def test_target_of_another_repository_is_a_fault(check: Check, tmp_path: Path) -> None:
    other = Repository.create(tmp_path / "other")
    store = opening.opened(str(tmp_path / "copies"), create=True)
    target.opened_for(store, other.ids, create=True)
    store.close()
    text = f"[target.t]\nurl = '{tmp_path}/copies'\n[job.a]\ncopy-to = ['t']\n"
    assert [(line, "has the copies of another repository" in said) for line, said in faults(check(text))] == [(4, True)]


def test_target_that_is_not_there_yet_is_told(check: Check, tmp_path: Path) -> None:
    found = check(f"[target.t]\nurl = '{tmp_path}/none'\n[job.a]\ncopy-to = ['t']\n[target.u]\nurl = '{tmp_path}'\n")
    assert (4, f"Target 't': there is no directory {tmp_path}/none; the first copy makes it. Is the disk mounted?") in (
        warnings(found)
    )
    assert (8, "No job copies to target 'u'.") in warnings(found)
    assert not (tmp_path / "none").exists()


def test_target_of_two_repositories_is_a_fault(check: Check, tmp_path: Path) -> None:
    Repository.create(tmp_path / "b")
    found = check(
        f"[repository.b]\npath='{tmp_path}/b'\n[target.t]\nurl='{tmp_path}/t'\n[job.x]\nrepository='main'\n"
        "copy-to='t'\n[job.y]\nrepository='b'\ncopy-to='t'\n"
    )
    assert faults(found) == [
        (6, "Target 't' would get copies of the repositories b, main: give each a target."),
    ]


def test_files_of_a_target_are_looked_at(check: Check, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("AWS_ACCESS_KEY_ID=x\n")
    (tmp_path / "keys").chmod(0o644)
    found = check(
        f"[target.t]\nurl='s3://bucket'\n[target.t.copy]\ntarget-config='{tmp_path}/keys'\n"
        f"[target.u]\nurl='{tmp_path}'\n[target.u.copy]\nrecipients-file='/nowhere'\n[job.a]\ncopy-to=['t', 'u']\n"
    )
    assert [line for line, _ in faults(found)] == [6, 8]
    assert "AWS_ACCESS_KEY_ID=x" not in str(faults(found))
    assert "The recipients file /nowhere cannot be used" in faults(found)[1][1]


# Files, times, people


def test_directories_and_programs_that_are_not_there(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    monkeypatch.setattr(mail, "USUAL", Path("/nowhere/sendmail"))
    found = check(
        "[job.a.backup]\nfleecing = '/nowhere/f'\nscripts = '/nowhere/s'\n[job.a.audit]\nscratch = '/nowhere/a'\n"
        "[job.a.verify]\nfsck = true\n[metrics]\ntextfile = '/nowhere/m/x.prom'\n[report]\nhtml = '/nowhere/r/x.html'\n"
        "[notify.m]\nmail-to = 'root'\n"
    )
    assert [line for line, _ in faults(found)] == [4, 5, 7, 9, 11, 13, 15]
    text = str(faults(found))
    for said in ("no directory /nowhere/f", "no directory /nowhere/s", "needs guestfish", "needs sendmail"):
        assert said in text


def test_random_delay_that_leaves_the_window_is_told(check: Check) -> None:
    text = "[job.a]\nat = ['01:00', '05:30']\nwindow = '22:00-06:00'\nrandom-delay = '1h'\n"
    assert (6, "Job a: with its random delay, the run of 05:30 can begin after its window.") in warnings(check(text))


def test_nobody_who_is_told_is_told(check: Check) -> None:
    assert any("Nobody is told if job a fails" in text for _, text in warnings(check("[job.a]\n")))


def test_secrets_are_read_and_never_shown(check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    (tmp_path / "good").write_text("https://hc-ping.example/5e0a3c1d\n")
    (tmp_path / "good").chmod(0o600)
    (tmp_path / "word").write_text("hunter2\n")
    (tmp_path / "word").chmod(0o600)
    (tmp_path / "open").write_text("https://x\n")
    (tmp_path / "open").chmod(0o644)
    found = check(
        f"[job.a]\n[notify.a]\nping = {{ file = '{tmp_path}/good' }}\n"
        f"[notify.b]\nping = {{ file = '{tmp_path}/word' }}\n"
        f"[notify.c]\nwebhook = {{ file = '{tmp_path}/open' }}\n"
        "[notify.d]\nwebhook = { command = ['false'] }\n"
        "[notify.e]\nping = { credential = 'ping' }\n"
    )
    assert [line for line, _ in faults(found)] == [7, 9, 11]
    text = str((faults(found), warnings(found)))
    assert "is not a URL such as https://HOST/..." in text
    assert "others can read it" in text
    assert "failed with status 1" in text
    assert "'vbackup schedule' loads it" in text
    assert "hunter2" not in text
    assert "5e0a3c1d" not in text


def test_program_that_others_can_write_is_not_run_to_be_checked(check: Check, tmp_path: Path) -> None:
    program, run = tmp_path / "print-url", tmp_path / "run"
    program.write_text(f"#!/bin/sh\ntouch {run}\necho https://example.org/\n")
    program.chmod(0o755)
    text = f"[job.a]\n[notify.a]\nping = {{ command = ['{program}'] }}\n"
    assert faults(check(text)) == []
    run.unlink()
    program.chmod(0o777)
    found = check(text)
    [(line, said)] = faults(found)
    assert (line, len(found.refused), run.exists()) == (5, 1, False)
    assert "can be written by others than its owner" in said


@pytest.mark.parametrize("url", ["http:///x", "https://x:99999/y", "https://x/a b", "https://x:port/", "ftp://x/"])
def test_url_that_no_message_could_be_sent_to_is_a_fault(check: Check, tmp_path: Path, url: str) -> None:
    (tmp_path / "url").write_text(url)
    (tmp_path / "url").chmod(0o600)
    found = check(f"[job.a]\n[notify.a]\nwebhook = {{ file = '{tmp_path}/url' }}\n")
    [(line, said)] = faults(found)
    assert line == 5
    assert "port up to 65535" in said
    assert url not in said
    assert found.refused == ()


@pytest.mark.parametrize(
    ("url", "is_known"),
    [("json://example.org/s3cr3t-T0ken", True), ("tgram://s3cr3t-T0ken", False), ("tgarm://1:s3cr3t-T0ken/2", False)],
)
def test_url_that_apprise_cannot_use_is_a_fault(check: Check, tmp_path: Path, url: str, *, is_known: bool) -> None:
    pytest.importorskip("apprise")
    (tmp_path / "url").write_text(url)
    (tmp_path / "url").chmod(0o600)
    found = check(f"[job.a]\n[notify.a]\napprise = {{ file = '{tmp_path}/url' }}\n")
    expected = (
        f"The secret from file {tmp_path}/url cannot be used: apprise does not know the service of its URL, or misses a"
        " part of it; see 'apprise --details'."
    )
    assert faults(found) == ([] if is_known else [(5, expected)])
    assert found.refused == ()


@pytest.mark.parametrize("is_offline", [True, False])
def test_mail_address_that_is_none_is_a_fault(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_offline: bool
) -> None:
    # The program that is named counts, whether or not there is one where it usually is.
    monkeypatch.setattr(config_check, "_has_sendmail", lambda: False)
    (tmp_path / "sendmail").write_text("#!/bin/sh\n")
    (tmp_path / "sendmail").chmod(0o755)
    found = check(
        f"[job.a]\n[notify.m]\nsendmail = '{tmp_path}/sendmail'\nmail-to = ['root', 'no body@x']\n"
        "mail-from = 'a@b@c'\n",
        is_offline=is_offline,
    )
    assert faults(found) == [
        (6, "'no body@x' is not a mail address, such as ops@example.org."),
        (7, "'a@b@c' is not a mail address, such as ops@example.org."),
    ]


@pytest.mark.parametrize("key", ["html", "text"])
def test_report_that_cannot_be_written_is_a_fault(check: Check, tmp_path: Path, key: str) -> None:
    assert faults(check(f"[job.a]\n[report]\n{key} = '{tmp_path}'\n")) == [
        (5, f"{tmp_path} is a directory: give the path of a file.")
    ]
    assert faults(check(f"[job.a]\n[report]\n{key} = '{tmp_path}/no/x'\n")) == [
        (5, f"There is no directory {tmp_path}/no for x.")
    ]
    assert faults(check(f"[job.a]\n[report]\n{key} = '{tmp_path}/x'\n")) == []


def test_configuration_without_a_job_is_refused(check: Check) -> None:
    found = check("")
    assert [said[:28] for _, said in faults(found)] == ["The configuration has no job"]
    assert found.refused == found.faults
    # One that has a fault is there, and is what is told.
    assert [line for line, _ in faults(check("[job.a]\nx = 1\n"))] == [4]


def test_package_that_is_not_there_is_a_fault(check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_check.importlib.util, "find_spec", lambda _name: None)
    (tmp_path / "url").write_text("slack://x\n")
    (tmp_path / "url").chmod(0o600)
    found = check(f"[job.a]\n[notify.a]\napprise = {{ file = '{tmp_path}/url' }}\n")
    assert faults(found) == [
        (5, "'apprise' needs the Python package apprise, which is not installed: on Debian, apprise.")
    ]


def test_encrypted_target_needs_a_package(check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "copies").mkdir()
    recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
    text = f"[target.t]\nurl='{tmp_path}/copies'\n[target.t.copy]\nrecipient='{recipient}'\n[job.a]\ncopy-to='t'\n"
    assert faults(check(text)) == []
    monkeypatch.setattr(config_check.importlib.util, "find_spec", lambda _name: None)
    assert [(line, "has no cryptography to seal or open it" in said) for line, said in faults(check(text))] == [
        (4, True)
    ]


def test_check_can_be_stopped(check: Check, hosts: dict[str, FakeHost]) -> None:
    stop = Stop()
    stop.request(15)
    with pytest.raises(InterruptedBySignalError):
        check("[job.a]\n", stop=stop)
