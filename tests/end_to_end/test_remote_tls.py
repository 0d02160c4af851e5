"""Backups of domains on another host whose QEMU connects straight to a port of the backup host, by TLS."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import libvirt_qemu
import pytest

from tests import certificates
from tests.daemon import wait_for
from tests.end_to_end.chains import levels
from tests.end_to_end.test_remote import RemoteChain
from tests.hosts import Hypervisor
from tests.lab import DiskSpec
from vbackup.domain import host
from vbackup.domain.host import Host
from vbackup.images import target_tls
from vbackup.model import Backup
from vbackup.repository.journal import Journal

if TYPE_CHECKING:
    from tests.conftest import Command


#: What a backup leaves nothing of in QEMU.
IN_QEMU = ("nodes", "jobs", "fdsets")


class Keys:
    """Certificates or keys of both hosts, and the options that name them."""

    def __init__(self, hypervisor: Hypervisor, tmp_path: Path) -> None:
        self.host = hypervisor.ipv4.rpartition(".")[0] + ".1"
        self.here = certificates.make(tmp_path / "pki", f"IP:{self.host}")
        self.there = hypervisor.images / "pki"
        self.there.mkdir(mode=0o755)
        self.port = 10809

    def give(self, *names: str) -> None:
        for name in names:
            shutil.copy(self.here / name, self.there / name)
            (self.there / name).chmod(0o644)

    def options(self, **changes: str) -> list[str]:
        words = {
            "--transport": "tls",
            "--listen": f"{self.host}:{self.port}",
            "--tls-creds": str(self.here),
            "--hypervisor-tls-creds": str(self.there),
            **{f"--{name}": value for name, value in changes.items()},
        }
        return [word for pair in words.items() for word in pair]


@pytest.fixture
def keys(hypervisor: Hypervisor, tmp_path: Path) -> Keys:
    return Keys(hypervisor, tmp_path)


@pytest.fixture
def chain(hypervisor: Hypervisor, command: Command, repository: Path, tmp_path: Path) -> RemoteChain:
    specs = [
        DiskSpec(hypervisor.images / "vda.qcow2", size="16M"),
        DiskSpec(hypervisor.images / "vdb.raw", dev="vdb", size="8M", format="raw"),
    ]
    made = RemoteChain(hypervisor, command, repository, tmp_path, specs)
    for dev in ("vda", "vdb"):
        made.machine.write(dev, "write -P 1 0 6M", "write -z 3M 1M")
    return made


def objects(chain: RemoteChain) -> set[str]:
    """What QEMU has of ours beside nodes and jobs."""
    found = chain.machine.monitor.execute("qom-list", {"path": "/objects"})
    return {one["name"] for one in found if one["name"].startswith("vbackup")}


def test_certificates(chain: RemoteChain, keys: Keys) -> None:
    keys.give("ca-cert.pem", "client-cert.pem", "client-key.pem")
    clean = chain.machine.state()
    done = chain.backup(*keys.options(), during=lambda: chain.machine.write("vda", "write -P 2 1M 1M"))
    assert set(levels(done).values()) == {"full"}
    chain.machine.write("vda", "write -P 3 2M 64k")
    assert set(levels(chain.backup("--compress", "zstd", *keys.options())).values()) == {"incremental"}
    assert objects(chain) == set()
    after = chain.machine.state()
    assert [after[what] for what in IN_QEMU] == [clean[what] for what in IN_QEMU]


def refused(chain: RemoteChain, *options: str, status: int = 5) -> str:
    """Why a backup is refused; the guest is not made to wait for it, and QEMU is as before."""
    before = chain.machine.state()
    with stillness_of(chain) as still:
        words = ("-c", chain.hypervisor.uri, "backup", "web", "-r", chain.repository, "--json", *options)
        failed = chain.command(*words, status=status)
    assert chain.machine.state() == before
    assert objects(chain) == set()
    assert max(still) < 2
    message: str = failed.document["message"]
    return message


@contextmanager
def stillness_of(chain: RemoteChain) -> Iterator[list[float]]:
    """The seconds that QEMU has taken for each answer during the block: it stands still while it opens a node."""
    taken, is_over = [0.0], threading.Event()
    with Host(chain.hypervisor.direct_uri) as direct:
        domain = direct.domain("web").domain

        def ask() -> None:
            while not is_over.wait(0.02):
                begun = time.monotonic()
                libvirt_qemu.qemuMonitorCommand(domain, "info name", 1)
                taken.append(time.monotonic() - begun)

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield taken
        finally:
            is_over.set()
            thread.join()


@pytest.mark.long
def test_what_does_not_belong_together_is_refused_before_qemu_waits_for_it(
    chain: RemoteChain, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_tls, "TRIAL_S", 1)  # the shorter, the quicker this test
    said = refused(chain, *keys.options())
    assert f"QEMU on root@hv1 cannot use TLS ({keys.there}: " in said
    assert "ca-cert.pem, client-cert.pem and client-key.pem" in said
    keys.give("ca-cert.pem")
    assert "could not speak TLS" in refused(chain, *keys.options())  # without a certificate
    keys.give("client-cert.pem", "client-key.pem")
    (keys.there / "client-key.pem").chmod(0o600)
    said = refused(chain, *keys.options())
    assert "Cannot load certificate" in said
    other = keys.here.parent / "other"
    certificates.make(other, "DNS:other.example")
    keys.give("client-key.pem")
    said = refused(chain, *keys.options(**{"tls-creds": str(other)}))
    assert "could not speak TLS" in said
    said = refused(chain, *keys.options(listen="127.0.0.1:10809"))  # the hypervisor's own
    assert "Connection refused" in said
    said = refused(chain, *keys.options(listen="192.0.2.1:10809"))
    assert "Nothing can listen at 192.0.2.1:10809: Cannot assign requested address" in said
    said = refused(chain, *keys.options(**{"tls-creds": str(keys.here.parent)}))
    assert "has no ca-cert.pem and no server-cert.pem and no server-key.pem" in said
    with socket.create_server((keys.host, keys.port)):
        assert "No port of 10809" in refused(chain, *keys.options(), status=8)
        done = chain.backup(*keys.options(listen=f"{keys.host}:10809-10810"))
    assert set(levels(done).values()) == {"full"}


def test_keys_that_both_hosts_know(chain: RemoteChain, keys: Keys) -> None:
    here = keys.here.parent / "psk"
    here.mkdir()
    (here / "keys.psk").write_text(f"vbackup:{'ab' * 32}\n")
    (keys.there / "keys.psk").write_text(f"vbackup:{'cd' * 32}\n")
    options = keys.options(**{"tls-creds": str(here)})
    assert "could not speak TLS" in refused(chain, *options)
    (keys.there / "keys.psk").write_text(f"vbackup:{'ab' * 32}\n")
    assert set(levels(chain.backup(*options)).values()) == {"full"}


@pytest.mark.long
def test_cable_that_is_pulled_fails_the_backup_alone(chain: RemoteChain, keys: Keys) -> None:
    keys.give("ca-cert.pem", "client-cert.pem", "client-key.pem")
    chain.backup(*keys.options())
    before = chain.machine.state()
    for dev in ("vda", "vdb"):
        chain.machine.write(dev, "write -P 2 0 8M")
    started = Journal.started

    def pull(journal: Journal, draft: Backup) -> None:
        started(journal, draft)
        chain.hypervisor.pull_cable()

    config = chain.hypervisor.hosts.configured("ConnectTimeout 2\n")
    with config, pytest.MonkeyPatch.context() as patch, stillness_of(chain) as still:
        patch.setattr(Journal, "started", pull)
        patch.setattr(host, "RECONNECT_S", 1.0)
        options = ("backup", "web", "-r", chain.repository, "--json", "--speed", "1M", *keys.options())
        failed = chain.command("-c", chain.hypervisor.uri, *options, status=None)
        chain.machine.write("vda", "write -P 3 1M 64k")
        wait_for(lambda: not any(chain.machine.state()[what] != before[what] for what in IN_QEMU), "the end there")
    assert failed.status == 4
    assert max(still) < 1
    chain.hypervisor.plug_cable()
    assert set(levels(chain.backup(*keys.options())).values()) == {"incremental"}
    assert objects(chain) == set()
