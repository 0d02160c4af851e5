"""The link to a hypervisor over a real sshd: sockets, files and descriptors through it, and its end in all ways."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hosts import Hypervisor
from vbackup.errors import ForwardingError, HelperError, RemoteError, SshError
from vbackup.remote import address
from vbackup.remote.link import Link


@contextmanager
def linked(uri: str) -> Iterator[Link]:
    found = address.parse(uri)
    assert found is not None
    with Link(found) as link:
        yield link


def test_files_and_programs(hypervisor: Hypervisor, tmp_path: Path) -> None:
    path = hypervisor.images / "file"
    content = bytes(range(256)) * 3000
    with linked(hypervisor.uri) as link:
        assert link.hello["host"] == "hv1"
        link.write_file(str(path), [content[:100], content[100:]])
        assert b"".join(link.read_file(str(path))) == content
        assert link.stat(str(path))["size"] == len(content)
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(RemoteError, match="No such file") as missing:
            link.stat(str(tmp_path))
        assert missing.value.errno == 2
        assert link.run(["cat"], b"abc") == b"abc"
        with pytest.raises(RemoteError, match="could not run ls on root@hv1: ls: cannot access"):
            link.run(["ls", "/nothing"])
        assert link.try_run(["false"]).status == 1
        assert link.free_bytes(str(hypervisor.images)) > 0
        assert link.names_in(str(hypervisor.images)) == ["file"]
        link.remove_file(str(path))
    assert not path.exists()


@pytest.mark.parametrize("uri", ["qemu+ssh://root@[{ipv6}]:2222/system", "qemu+ssh://{ipv4}/system?keyfile={other}"])
def test_address_port_and_key_of_the_uri(hypervisor: Hypervisor, uri: str) -> None:
    other = hypervisor.hosts.directory / "other"
    if "keyfile" in uri:
        hypervisor.authorize(key="other")
    with linked(uri.format(ipv4=hypervisor.ipv4, ipv6=hypervisor.ipv6, other=other)) as link:
        assert link.run(["hostname"]) == b"hv1\n"


def test_port_of_ssh_config(hypervisor: Hypervisor) -> None:
    more = f"Host elsewhere\n HostName {hypervisor.ipv6}\n Port 2222\n User root\n RemoteForward 22 localhost:1\n"
    with hypervisor.hosts.configured(more), linked("qemu+ssh://elsewhere/system") as link:
        assert link.run(["hostname"]) == b"hv1\n"


def test_refusals_before_the_helper_runs(hypervisor: Hypervisor) -> None:
    known = hypervisor.hosts.directory / "known_hosts"
    before = known.read_text()
    try:
        known.write_text("")
        with pytest.raises(SshError, match=r"No ED25519 host key is known for .*Host key verification failed"):
            linked(hypervisor.uri).__enter__()
        other = (hypervisor.hosts.directory / "other.pub").read_text().split()[:2]
        known.write_text(f"{hypervisor.name} {' '.join(other)}\n{hypervisor.ipv4} {' '.join(other)}\n")
        with pytest.raises(SshError, match=r"Host key for .* has changed"):
            linked(hypervisor.uri).__enter__()
    finally:
        known.write_text(before)
    hypervisor.authorize(key="other")
    with pytest.raises(SshError, match="Permission denied"):
        linked(hypervisor.uri).__enter__()
    hypervisor.authorize()
    with pytest.raises(SshError, match="Connection refused"):
        linked(f"qemu+ssh://root@{hypervisor.ipv4}:23/system").__enter__()
    with hypervisor.without("python3"), pytest.raises(HelperError, match=r"ended with status 12[67].*python3"):
        linked(hypervisor.uri).__enter__()
    hypervisor.authorize('command="echo no"')
    with pytest.raises(HelperError, match="ended with status 0: no"):
        linked(hypervisor.uri).__enter__()
    hypervisor.authorize("restrict")
    with linked(hypervisor.uri) as link, pytest.raises(ForwardingError, match="port-forwarding"):
        link.forward(Path("/nothing"))
