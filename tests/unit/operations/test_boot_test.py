"""What a boot test does when libvirt fails, and which firmware it runs; end_to_end/test_boot_test.py has the rest."""

from __future__ import annotations

import os
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.builders import UUID
from vbackup.errors import ConnectionLostError, MonitorError, UnsuitableError, VbackupError
from vbackup.operations import boot_test
from vbackup.operations.boot_tpm import Given
from vbackup.repository import verify

FOUND = SimpleNamespace(backup=SimpleNamespace(domain_name="web"))


class Workplace:
    directory = Path("/run/copy")

    def __init__(self) -> None:
        self.acts = 0

    real_path = staticmethod(os.path.realpath)

    def tpm(self, *_: Any, **__: Any) -> Any:
        return nullcontext(Given())

    def act(self) -> None:
        self.acts += 1


def a_test(**parts: Any) -> Any:
    """A boot test that has only these parts."""
    made = boot_test._Test.__new__(boot_test._Test)
    vars(made).update({f"_{name}": part for name, part in parts.items()})
    return made


@pytest.mark.parametrize("error", [ConnectionLostError("Lost."), MonitorError("No.")])
def test_copy_that_may_have_started_is_killed(error: VbackupError) -> None:
    def start(_xml: str) -> None:
        raise error

    place = Workplace()
    made = a_test(host=SimpleNamespace(start_transient=start))
    with pytest.raises(type(error)), made._started(SimpleNamespace(xml="<domain/>"), None, None, place):
        pytest.fail("there is no copy")
    assert place.acts == 1


@pytest.mark.parametrize("path", ["/usr/share/OVMF/CODE.fd", "/usr/lib/qemu/x", "/usr/local/share/x"])
def test_firmware_of_a_package_is_run(path: str) -> None:
    a_test()._refuse_strange(path, Workplace())


@pytest.mark.parametrize("path", ["/etc/shadow", "bios.bin", "/usr/share/../../etc/shadow", "/usr/shared/x"])
def test_other_firmware_is_refused(path: str) -> None:
    with pytest.raises(UnsuitableError, match=f"Domain web has the firmware {path}, "):
        a_test(found=FOUND)._refuse_strange(path, Workplace())


def test_copy_with_other_firmware_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        f"<domain><name>web</name><uuid>{UUID}</uuid><memory>1</memory><os><loader>/etc/shadow</loader></os><devices/>"
        "</domain>"
    )
    monkeypatch.setattr(verify, "read_file", lambda *_: text.encode())
    monkeypatch.setattr(boot_test._Test, "_take", lambda *_: None)
    backup = SimpleNamespace(domain_name="web", id="1", files=["domain.xml"], machine_files=[])
    found = SimpleNamespace(backup=backup, choice=SimpleNamespace(disks={}))
    host = SimpleNamespace(real_uri="qemu:///system")
    made = a_test(found=found, repository=None, request=SimpleNamespace(max_memory_bytes=1024), host=host, stop=None)
    with pytest.raises(UnsuitableError, match="has the firmware /etc/shadow"):
        made._copy(UUID, Workplace(), ExitStack())


def test_link_to_other_files_is_no_firmware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot_test, "_FIRMWARE_PLACES", (f"{tmp_path}/share/",))
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "CODE.fd").write_bytes(b"")
    (tmp_path / "share" / "good").symlink_to("CODE.fd")
    (tmp_path / "share" / "bad").symlink_to("/etc/shadow")
    a_test()._refuse_strange(f"{tmp_path}/share/good", Workplace())
    with pytest.raises(UnsuitableError):
        a_test(found=FOUND)._refuse_strange(f"{tmp_path}/share/bad", Workplace())
