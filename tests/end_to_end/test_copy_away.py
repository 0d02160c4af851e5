"""Copies at another host by ssh and in a bucket, by the command, and everything back on a machine without repository.

The bucket is SeaweedFS's, the other host a network namespace with its own sshd. These are also the tests of
stores.ssh and stores.sftp with a real ssh.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import age
from tests import azure as azure_
from tests import hosts as hosts_
from tests.azure import Azure
from tests.conftest import Command
from tests.fault_proxy import Fault, FaultProxy, Seen, fault_proxy
from tests.gcs import TOKEN, Google
from tests.trees import State, Tree
from tests.unit.builders import UUID
from tests.weed import SECRET, Weed
from vbackup.errors import Status
from vbackup.stores import s3
from vbackup.stores.ssh import SshStore
from vbackup.stores.store import Deletion

SIZE = 1024 * 1024
EVERY = int(os.environ.get("VBACKUP_KILLS", "3"))


def chain(path: Path, count: int = 3) -> Tree:
    """Two disks: a full, and increments."""
    tree = Tree(path)
    a, b = (State.of(SIZE, {n: (n + start, n) for n in range(6)}) for start in (1, 101))
    last = tree.backup({"vda": a, "vdb": b})
    for n in range(1, count):
        a, b = a.changed({n: (40 + n, 0)}), b.changed({n: (0, 0), 15: (50 + n, 0)})
        last = tree.backup({"vda": a, "vdb": b}, {"vda": last, "vdb": last})
    return tree


@dataclass(frozen=True)
class Away:
    """A target that is not on this machine."""

    url: str
    options: tuple[str, ...] = ()  #: what commands need to open it
    recipient: tuple[str, ...] = ()  #: what copy needs besides, and the others do not
    identity: tuple[str, ...] = ()  #: the other way round
    secret: str = "-----BEGIN"  #: what may be in no file and no output


def config(path: Path, weed: Weed, *, endpoint: str | None = None) -> tuple[str, ...]:
    return written(path, weed.settings(endpoint))


def written(path: Path, settings: Mapping[str, str]) -> tuple[str, ...]:
    path.write_text("".join(f"{name}={value}\n" for name, value in settings.items() if name != "HOME"))
    path.chmod(0o600)
    return ("--target-config", os.fspath(path))


@pytest.fixture(params=["s3", "gs", "az", "ssh", "s3 encrypted"])
def away(request: pytest.FixtureRequest, tmp_path: Path) -> Away:
    if request.param == "ssh":
        host: hosts_.Hypervisor = request.getfixturevalue("hypervisor")
        return Away(f"ssh://{host.name}{host.directory}/{tmp_path.name}")
    if request.param == "gs":
        google: Google = request.getfixturevalue("google")
        options = written(tmp_path / "keys", google.settings())
        return Away(f"gs://{google.bucket}/{tmp_path.name}", options, secret=TOKEN)
    if request.param == "az":
        azure: Azure = request.getfixturevalue("azure")
        options = written(tmp_path / "keys", azure.settings())
        return Away(f"az://{azure.container}/{tmp_path.name}", options, secret=azure_.KEY)
    weed: Weed = request.getfixturevalue("weed")
    url, options = f"s3://{weed.shared}/{tmp_path.name}", config(tmp_path / "keys", weed)
    if request.param == "s3":
        return Away(url, options, secret=SECRET)
    pair = age.key_pair(tmp_path)
    return Away(url, options, ("--recipient", pair.recipient), ("--identity", os.fspath(pair.path)))


@pytest.fixture(name="proxy")
def faults(weed: Weed) -> Iterator[FaultProxy]:
    with fault_proxy(weed.endpoint) as started:
        yield started


def test_everything_comes_back_without_the_repository(tmp_path: Path, command: Command, away: Away) -> None:
    tree = chain(tmp_path / "repo")
    ids = tree.ids()
    done = command(
        "copy", UUID, "-r", tree.repository.path, "--to", away.url, *away.options, *away.recipient, "--json"
    ).document
    assert [point["id"] for point in done["domains"][0]["copied"]] == ids
    again = command(
        "copy", UUID, "-r", tree.repository.path, "--to", away.url, *away.options, *away.recipient, "--json"
    ).document
    assert again["domains"][0]["copied"] == []
    assert away.secret not in str((done, again))
    for path in tree.repository.path.rglob("*"):
        assert path.is_dir() or away.secret.encode() not in path.read_bytes(), path
    newest = ids[-1]
    before = tmp_path / "before"
    command("restore", UUID, "-r", tree.repository.path, "--backup", newest, "--output", before)
    # Another machine: neither the repository nor anything that was learned of the target is there.
    shutil.move(tree.repository.path, tmp_path / "lost")
    cache = ("--cache", tmp_path / "cache")
    listed = command("list", UUID, "--from", away.url, *away.options, *away.identity, *cache, "--json").document
    assert newest in str(listed)
    command("verify", UUID, "--from", away.url, *away.options, *away.identity, *cache)
    after = tmp_path / "after"
    command(
        "restore",
        UUID,
        "--from",
        away.url,
        *away.options,
        *away.identity,
        *cache,
        "--backup",
        newest,
        "--output",
        after,
    )
    images = sorted(path.name for path in before.glob("vd*"))
    assert len(images) == 2
    for name in images:
        subprocess.run(["qemu-img", "compare", before / name, after / name], check=True, capture_output=True)
    command("fetch", "-r", tmp_path / "fetched", "--from", away.url, *away.options, *away.identity, *cache)
    fetched = object.__new__(Tree)
    fetched.repository = type(tree.repository).open(tmp_path / "fetched")
    fetched.uuid, fetched.states = tree.uuid, tree.states
    fetched.check(by_qemu=True)
    assert fetched.ids() == ids


def test_prune_at_a_target_that_is_away(tmp_path: Path, command: Command, away: Away) -> None:
    tree = Tree(tmp_path / "repo")
    ids = [tree.backup({"vda": State.of(SIZE, {0: (n, n)})}) for n in (1, 2, 3)]
    command("copy", UUID, "-r", tree.repository.path, "--to", away.url, *away.options, *away.recipient)
    cache = ("--cache", tmp_path / "cache")
    at = ("--at", away.url, *away.options, *away.identity, *cache)
    pruned = command("prune", UUID, *at, "--keep-last", "1", "--json").document
    assert pruned["domains"][0]["removed"] == 2
    listed = command("list", UUID, "--from", away.url, *away.options, *away.identity, *cache, "--json").stdout
    assert [one in listed for one in ids] == [False, False, True]


# ssh


@pytest.fixture(name="target")
def directory_there(hypervisor: hosts_.Hypervisor, tmp_path: Path) -> Path:
    path = hypervisor.directory / f"t-{tmp_path.name}"
    path.mkdir()
    return path


def test_account_that_is_limited_to_sftp_will_do(hypervisor: hosts_.Hypervisor, target: Path) -> None:
    hypervisor.authorize('restrict,command="internal-sftp"')
    try:
        for url in (
            f"ssh://hv1{target}",
            f"ssh://root@{hypervisor.ipv4}:2222{target}",
            f"ssh://[{hypervisor.ipv6}]{target}",
        ):
            store = SshStore(url)
            key = f"k{len(url)}"
            with (target.parent / "one").open("w+b") as source:
                source.write(b"content")
                source.seek(0)
                assert store.put_new(key, source, 7)
            assert b"".join(store.get(key)) == b"content"
            assert (target / key).read_bytes() == b"content"
            store.close()
    finally:
        hypervisor.authorize()


def test_file_that_is_immutable_there_is_kept(hypervisor: hosts_.Hypervisor, target: Path) -> None:
    (target / "kept").write_bytes(b"x")
    store = SshStore(f"ssh://hv1{target}")
    subprocess.run(["chattr", "+i", target / "kept"], check=True)
    try:
        assert store.delete("kept") is Deletion.KEPT
    finally:
        subprocess.run(["chattr", "-i", target / "kept"], check=True)
    assert store.delete("kept") is Deletion.DELETED
    store.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ssh://nobody-there{target}", "ould not resolve hostname nobody-there"),
        ("ssh://hv1:1{target}", "Connection refused"),
        ("ssh://mallory@hv1{target}", "Permission denied"),
    ],
)
def test_host_that_cannot_be_reached_is_status_4_with_the_words_of_ssh(
    tmp_path: Path, command: Command, target: Path, url: str, words: str
) -> None:
    outcome = command("list", UUID, "--from", url.format(target=target), "--cache", tmp_path, status=Status.NOT_FOUND)
    assert words in outcome.stderr


@pytest.mark.parametrize("known", ["", "changed"])
def test_host_key_that_is_unknown_or_another_one_is_refused(
    tmp_path: Path, command: Command, hypervisor: hosts_.Hypervisor, target: Path, known: str
) -> None:
    file = tmp_path / "known_hosts"
    other = (hypervisor.hosts.directory / "other.pub").read_text().split()[:2]
    file.write_text(f"hv1,{hypervisor.ipv4} {' '.join(other)}\n" if known else "")
    with hypervisor.hosts.configured(f"UserKnownHostsFile {file}\n"):
        outcome = command("list", UUID, "--from", f"ssh://hv1{target}", "--cache", tmp_path, status=Status.NOT_FOUND)
    assert "ssh: Host key verification failed" in outcome.stderr
    assert ("somebody may be listening in" in outcome.stderr) == bool(known)


def test_no_directory_there(command: Command, tmp_path: Path, target: Path) -> None:
    outcome = command("list", UUID, "--from", f"ssh://hv1{target}/no", "--cache", tmp_path, status=Status.STORAGE)
    assert "There is no directory" in outcome.stderr


def test_connection_that_ends_in_the_middle_is_an_error_and_leaves_no_object(
    hypervisor: hosts_.Hypervisor, target: Path, tmp_path: Path, command: Command
) -> None:
    tree = chain(tmp_path / "repo", count=1)

    store = SshStore(f"ssh://hv1{target}")

    class Source:
        pieces = 0

        def read(self, size: int, /) -> bytes:
            self.pieces += 1
            if self.pieces == 3:
                assert hypervisor.kill("sshd: root")
            return bytes(size) if self.pieces < 200 else b""

        def seek(self, offset: int, /) -> None:
            raise NotImplementedError

    with pytest.raises(Exception, match="Cannot reach hv1: "):
        store.put_new("key", Source(), 1 << 40)
    store.close()
    assert not (target / "key").exists()
    command("copy", UUID, "-r", tree.repository.path, "--to", f"ssh://hv1{target}/new")


# S3


def vbackup(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "vbackup", *map(os.fspath, arguments)]


def test_killed_at_every_request_the_next_copy_goes_on(
    tmp_path: Path, command: Command, weed: Weed, proxy: FaultProxy
) -> None:
    """A prefix for each kill: the n-th request that changes something kills the copy, before the server has it."""
    tree = chain(tmp_path / "repo", count=2)
    options = config(tmp_path / "keys", weed, endpoint=proxy.endpoint)
    number = 0
    while True:
        number += EVERY
        url = f"s3://{weed.shared}/{tmp_path.name}/{number}"
        argv = vbackup("copy", UUID, "-r", tree.repository.path, "--to", url, *options)
        child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        proxy.choose = _killer(child.pid, number)
        status = child.wait(timeout=60)
        proxy.choose = lambda request: None
        command("copy", UUID, "-r", tree.repository.path, "--to", url, *options)
        cache = tmp_path / f"cache-{number}"
        verified = command("verify", UUID, "--from", url, *options, "--cache", cache, "--json").stdout
        assert all(one in verified for one in tree.ids())
        shutil.rmtree(cache)
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert number > 3 * EVERY


def _killer(pid: int, number: int) -> Callable[[Seen], Fault | None]:
    left = number

    def choose(request: Seen) -> Fault | None:
        nonlocal left
        if request.method in ("PUT", "POST", "DELETE"):
            left -= 1
            if left == 0:
                os.kill(pid, signal.SIGKILL)
                return Fault.DROPPED
        return None

    return choose


def test_damaged_image_from_the_network_is_never_restored(
    tmp_path: Path, command: Command, weed: Weed, proxy: FaultProxy
) -> None:
    tree = chain(tmp_path / "repo", count=2)
    url = f"s3://{weed.shared}/{tmp_path.name}"
    options = config(tmp_path / "keys", weed, endpoint=proxy.endpoint)
    command("copy", UUID, "-r", tree.repository.path, "--to", url, *options)
    proxy.choose = lambda request: (
        Fault.CHANGED_ANSWER if request.method == "GET" and request.path.endswith("vda.qcow2") else None
    )
    output = tmp_path / "restored"
    outcome = command(
        "restore", UUID, "--from", url, *options, "--cache", tmp_path / "cache", "--output", output, status=None
    )
    assert outcome.status in (Status.CHAIN, Status.STORAGE)
    assert not list(output.glob("*")) if output.exists() else True


def test_lock_is_a_state_and_its_rule_is_told(tmp_path: Path, command: Command, weed: Weed) -> None:
    tree = Tree(tmp_path / "repo")
    for n in (1, 2, 3):
        tree.backup({"vda": State.of(SIZE, {0: (n, n)})})
    url = f"s3://{weed.bucket(lock_days=30)}/copies"
    options = config(tmp_path / "keys", weed)
    told = command("copy", UUID, "-r", tree.repository.path, "--to", url, *options)
    assert "locks new objects for 30 days" in told.stderr + told.stdout
    cache = ("--cache", tmp_path / "cache")
    pruned = command("prune", UUID, "--at", url, *options, *cache, "--keep-last", "1", "--json")
    lines = pruned.document["domains"][0]["backups"]
    assert len(lines) == 3
    assert pruned.document["domains"][0]["removed"] == 0
    assert "does not allow to delete it yet" in pruned.stdout
    listed = command("list", UUID, "--from", url, *options, *cache, "--json").stdout
    assert all(one in listed for one in tree.ids())


@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_server_that_fails_is_an_error_that_names_it(
    tmp_path: Path, command: Command, weed: Weed, proxy: FaultProxy, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "RETRY_S", 0.5)
    tree = chain(tmp_path / "repo", count=1)
    options = config(tmp_path / "keys", weed, endpoint=proxy.endpoint)
    url = f"s3://{weed.shared}/{tmp_path.name}"
    proxy.times(Fault.ERROR_503, 10_000, method=method)
    outcome = command("copy", UUID, "-r", tree.repository.path, "--to", url, *options, status=Status.STORAGE)
    assert proxy.endpoint.partition("://")[2] in outcome.stderr
    assert "503" in outcome.stderr
    assert SECRET not in outcome.stdout + outcome.stderr
