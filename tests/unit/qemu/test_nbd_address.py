"""URIs of NBD exports, both ways."""

from __future__ import annotations

from pathlib import Path

import pytest

from vbackup.errors import MalformedError, StorageError
from vbackup.qemu import nbd_address
from vbackup.qemu.nbd_address import NbdAddress

ADDRESSES = {
    "nbd+unix:///vda?socket=/run/s": NbdAddress("vda", path=Path("/run/s")),
    "nbd+unix:///a%20b/c?socket=/run/%C3%A4%26": NbdAddress("a b/c", path=Path("/run/ä&")),
    "nbds+unix:///vda?socket=/run/s": NbdAddress("vda", path=Path("/run/s"), is_tls=True),
    "nbd://host.example:10809/vda": NbdAddress("vda", host="host.example"),
    "nbds://[::1]:7000/vda": NbdAddress("vda", host="::1", port=7000, is_tls=True),
}


@pytest.mark.parametrize(("uri", "address"), ADDRESSES.items(), ids=ADDRESSES)
def test_uri_and_address_are_the_same(uri: str, address: NbdAddress) -> None:
    assert nbd_address.parse(uri) == address
    assert address.uri == uri


def test_port_can_be_left_out() -> None:
    assert nbd_address.parse("nbds://h/vda").port == 10809


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "/run/s",
        "http://host/vda",
        "nbd:///vda",
        "nbd+unix:///vda",
        "nbd+unix:///vda?socket=run",
        "nbd+unix:///vda?socket=/a&socket=/b",
        "nbd+unix://host/vda?socket=/a",
        "nbd://host:99999/vda",
        "nbd://host:x/vda",
        "nbd://host/vda?socket=/a",
        "nbd://[::1/vda",
        "nbd+unix:///%ff?socket=/a",
        "nbd+unix:///vda?socket=/a%00b",
    ],
)
def test_what_is_no_uri_of_an_export_is_refused(uri: str) -> None:
    with pytest.raises(MalformedError, match="is not the address of an NBD export"):
        nbd_address.parse(uri)


def test_credentials_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"credentials in .* cannot be used .*ca-cert\.pem"):
        nbd_address.client_context(tmp_path)
    (tmp_path / "ca-cert.pem").write_text("nonsense")
    with pytest.raises(StorageError, match="cannot be used"):
        nbd_address.client_context(tmp_path)
