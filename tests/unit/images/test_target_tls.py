"""Ports are shared out within a process, and files and hosts that are not there are refused with what is needed."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from vbackup.errors import BusyError, InterruptedBySignalError, QemuText, QmpError, RemoteError, UnsuitableError
from vbackup.images import target_tls
from vbackup.images.target_tls import TlsConnector, TlsPlace
from vbackup.names import Naming


def place(creds: Path, host: str = "127.0.0.1", ports: range | None = None, there: str | None = None) -> TlsPlace:
    return TlsPlace(host, ports or range(10809, 10810), creds, there)


@pytest.fixture
def free() -> range:
    """Two ports that nobody listens at."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            number = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", number + 1))
            except (OSError, OverflowError):
                continue
        return range(number, number + 2)


def test_each_backup_takes_a_port_and_the_next_one_waits(tmp_path: Path, free: range) -> None:
    shared = place(tmp_path, ports=free)
    got: list[int] = []

    def third() -> None:
        with target_tls.port(shared, check=lambda: None) as number:
            got.append(number)

    with target_tls.port(shared, check=lambda: None) as one:
        with target_tls.port(shared, check=lambda: None) as two:
            assert [one, two] == list(free)
            thread = threading.Thread(target=third)
            thread.start()
        thread.join(10)
    assert got == [two]


def test_waiting_for_a_port_can_be_ended(tmp_path: Path, free: range) -> None:
    def end() -> None:
        raise InterruptedBySignalError(15)

    only = place(tmp_path, ports=free[:1])
    with (
        target_tls.port(only, check=lambda: None),
        pytest.raises(InterruptedBySignalError),
        target_tls.port(only, check=end),
    ):
        pass


def test_port_of_somebody_else_is_busy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        with (
            pytest.raises(BusyError, match=rf"No port of {number} of 127\.0\.0\.1 is free"),
            target_tls.port(place(tmp_path, ports=range(number, number + 1)), check=lambda: None),
        ):
            pass


def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnsuitableError, match=r"has no ca-cert\.pem and no server-cert\.pem and no server-key\.pem"):
        place(tmp_path).check()
    for name in ("ca-cert.pem", "server-cert.pem", "server-key.pem"):
        (tmp_path / name).touch()
    place(tmp_path).check()
    assert target_tls.server_options(place(tmp_path), "x") == {
        "qom-type": "tls-creds-x509",
        "id": "x",
        "dir": str(tmp_path),
        "endpoint": "server",
        "verify-peer": True,
    }
    (tmp_path / "keys.psk").touch()
    place(tmp_path).check()
    assert target_tls.server_options(place(tmp_path), "x")["qom-type"] == "tls-creds-psk"


class FakeMonitor:
    """Accepts the credentials of some directories."""

    def __init__(self, *directories: str) -> None:
        self.directories, self.objects = directories, dict[str, Any]()

    def execute(self, command: str, arguments: Any = None, *, fd: int | None = None) -> Any:
        assert fd is None
        if command == "object-add":
            if arguments["dir"] not in self.directories:
                raise QmpError(command, "GenericError", QemuText("Unable to access credentials: No such file."))
            self.objects[arguments["id"]] = arguments
        elif self.objects.pop(arguments["id"], None) is None:
            raise QmpError(command, "GenericError", QemuText("object not found"))


NAMING = Naming("0123456789ab")
CREDS = f"{NAMING.prefix}target-tls"


def test_credentials_are_libvirts_and_are_taken_back(tmp_path: Path) -> None:
    monitor = FakeMonitor("/etc/pki/qemu")
    with target_tls.credentials(monitor, place(tmp_path), NAMING, host="hv1") as found:
        assert found == (CREDS, "/etc/pki/qemu")
        assert monitor.objects[CREDS]["endpoint"] == "client"
    assert monitor.objects == {}
    with pytest.raises(UnsuitableError, match=r"QEMU on hv1 cannot use TLS \(/x: Unable to access"):  # noqa: SIM117
        with target_tls.credentials(monitor, place(tmp_path, there="/x"), NAMING, host="hv1"):
            pass


class FakeLink:
    host = "hv1"

    def __init__(self, status: int = 0, said: str = "", error: RemoteError | None = None) -> None:
        self.status, self.stderr, self.error = status, said, error
        self.argv: list[list[str]] = []
        self.passed: list[str] = []

    def try_run(self, argv: list[str], *, timeout_s: float) -> Any:
        assert timeout_s > target_tls.TRIAL_S
        self.argv.append(argv)
        if self.error is not None:
            raise self.error
        return self

    def pass_nbd_by_tcp(self, _uuid: str, name: str, host: str, port: int) -> None:
        self.passed.append(f"{name} {host}:{port}")


def connector(link: Any, creds: Path, there: str = "/etc/pki/qemu") -> TlsConnector:
    return TlsConnector(link, "uuid", place(creds, host="backup"), 10809, CREDS, there)


def test_what_qemu_would_refuse_is_tried_once_before(tmp_path: Path) -> None:
    link, monitor = FakeLink(), FakeMonitor()
    one = connector(link, tmp_path, "/a,b")
    assert [one.address(monitor, name) for name in ("vda", "vdb")] == [
        {"type": "fd", "str": "vda"},
        {"type": "fd", "str": "vdb"},
    ]
    assert link.passed == ["vda backup:10809", "vdb backup:10809"]
    [argv] = link.argv
    assert argv[3] == f"tls-creds-x509,id={CREDS},dir=/a,,b,endpoint=client"
    assert "server.host=backup,server.port=10809,export=vda" in argv[5]
    assert one.members() == {"tls-creds": CREDS, "tls-hostname": "backup"}
    (tmp_path / "keys.psk").touch()
    assert one.members() == {"tls-creds": CREDS}


def test_refusal_of_the_trial_is_the_answer(tmp_path: Path) -> None:
    link = FakeLink(1, "qemu-img: Could not open 'x': TLS handshake failed: Expired.\n")
    with pytest.raises(UnsuitableError, match=r"could not speak TLS with backup:10809: Expired\. Check"):
        connector(link, tmp_path).address(FakeMonitor(), "vda")
    assert link.passed == []
    without = FakeLink(error=RemoteError("hv1", "run qemu-img", "No such file or directory"))
    connector(without, tmp_path).address(FakeMonitor(), "vda")
    assert without.passed == ["vda backup:10809"]
