"""Which ciphers are asked for, with a program in place of ssh that says how it is configured."""

from __future__ import annotations

from pathlib import Path

import pytest

from vbackup.remote import ciphers
from vbackup.remote.address import Address

CHACHA, CTR, GCM128, GCM256 = "chacha20-poly1305@openssh.com", "aes128-ctr", *ciphers._QUICK
DEFAULT = f"{CHACHA},{CTR},{GCM128},{GCM256}"

SSH = """\
#!/bin/sh
case "$*" in
*"-F /dev/null"*) {default} ;;
*) {configured} ;;
esac
"""


@pytest.fixture(autouse=True)
def _processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ciphers, "_CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu aes sse\n\n")


def address(tmp_path: Path, *, default: str = DEFAULT, configured: str = DEFAULT, name: str = "ssh") -> Address:
    """A host; ``default`` and ``configured`` are what ssh says, or commands if they begin with a blank."""
    commands = [
        text if text.startswith(" ") else f"printf 'user root\\nciphers {text}\\nport 22\\n'"
        for text in (default, configured)
    ]
    program = tmp_path / name
    program.write_text(SSH.format(default=commands[0], configured=commands[1]))
    program.chmod(0o755)
    return Address("hv1", "qemu:///system", command=str(program))


def test_quick_ones_come_first_and_all_others_stay(tmp_path: Path) -> None:
    assert ciphers.preferred(address(tmp_path)) == f"{GCM128},{GCM256},{CHACHA},{CTR}"
    fips = f"{CTR},{GCM256}"  # a distribution may have built ssh with fewer
    assert ciphers.preferred(address(tmp_path, default=fips, configured=fips)) == f"{GCM256},{CTR}"


@pytest.mark.parametrize("chosen", [CHACHA, f"{CTR},{GCM256}", f"{DEFAULT},3des-cbc"])
def test_list_that_was_chosen_is_kept(tmp_path: Path, chosen: str) -> None:
    assert ciphers.preferred(address(tmp_path, configured=chosen)) is None


@pytest.mark.parametrize("says", [" exit 255", " echo hello", " echo ciphers", " sleep 60"])
def test_ssh_that_does_not_say_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    monkeypatch.setattr(ciphers, "_LIMIT_S", 0.2)
    assert ciphers.preferred(address(tmp_path, configured=says)) is None
    assert ciphers.preferred(address(tmp_path, default=says)) is None


def test_other_programs_and_processors_are_left_alone(tmp_path: Path) -> None:
    assert ciphers.preferred(address(tmp_path, name="my-ssh")) is None
    assert ciphers.preferred(Address("hv1", "qemu:///system", command=str(tmp_path / "missing/ssh"))) is None
    found = address(tmp_path)
    for text, has in (
        ("Features\t: fp asimd aes pmull\n", True),
        ("flags\t\t: fpu vaes\n", False),
        ("cpu\t\t: POWER9\n", False),
    ):
        (tmp_path / "cpuinfo").write_text(text)
        assert (ciphers.preferred(found) is not None) is has
    (tmp_path / "cpuinfo").unlink()
    assert ciphers.preferred(found) is None
