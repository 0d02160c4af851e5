"""The conversation with guestfish, with a fake of it: quoting, errors, streams, deadlines, and the end of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fake_guestfish import FakeGuestfish
from vbackup.errors import ApplianceError, ApplianceRefusedError, InterruptedBySignalError, UnsuitableError
from vbackup.images import appliance
from vbackup.images.appliance import Drive, command_line, word_list
from vbackup.stop import Stop


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGuestfish:
    made = FakeGuestfish(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return made


NAMES = [
    "plain",
    "with blank",
    "it's",
    "back\\",
    "a\\'b\\\\",
    "'",
    "new\nline",
    "\udcff\x1b[31m",
    'say "x"',
    "-",
    "~root",
]


def test_any_name_is_one_word() -> None:
    assert command_line(["cat", "/a b"]) == b'cat "/a b"'
    assert command_line(["cat", 'a"b\\c\n\x1b']) == b'cat "a\\x22b\\x5cc\\x0a\\x1b"'
    with pytest.raises(UnsuitableError, match="NUL"):
        command_line(["cat", "/\0"])


def test_line_that_guestfish_would_break_into_two_commands_is_not_sent() -> None:
    with pytest.raises(UnsuitableError, match="longer than guestfish can take"):
        command_line(["cat", "/" + "x" * 8180 + "\n!touch /tmp/x"])


def elements(text: str) -> list[str]:
    """What parse_string_list of guestfish's fish.c makes of the text."""
    found, at = [], 0
    while at < len(text):
        while at < len(text) and text[at] in " \t":
            at += 1
        token, is_quoted = "", False
        while at < len(text) and (text[at] not in " \t" or is_quoted):
            end = at
            if text[at] == "'":
                is_quoted, at, end = not is_quoted, at + 1, end + 1
            stops = "'" if is_quoted else " \t'"
            while end < len(text) and text[end] not in stops:
                end += 1
            if end < len(text) and text[end] == "'" and end != at and text[end - 1] == "\\":
                token, at = token + text[at : end - 1] + "'", end + 1
            else:
                token, at = token + text[at:end], end
        assert not is_quoted, "runaway quote"
        found.append(token)
    return found


def test_list_has_the_names_that_were_given() -> None:
    assert elements(word_list(NAMES)) == NAMES
    for name in NAMES:
        assert elements(word_list([name])) == [name]


def test_commands_and_answers(fake: FakeGuestfish, tmp_path: Path) -> None:
    fake.answer("ls", "/e\x1b 'x\"", with_="a\nb\udcff\n")
    fake.answer("find0", "/", with_=b"x\0y" * 100_000)
    fake.answer("stat", with_=FileNotFoundError("stat: /x: No such file or directory"))
    with appliance.session([Drive(tmp_path / "s", "vda")], stop=Stop()) as guest:
        assert guest.run("ls", "/e\x1b 'x\"") == "a\nb\udcff\n"
        with guest.reading("find0", "/", "-") as stream:
            assert stream.read() == b"x\0y" * 100_000
        with pytest.raises(ApplianceRefusedError, match=r"stat: /x: No such file or directory\.$") as caught:
            guest.run("stat", "/x")
        assert caught.value.is_not_found
        with guest.reading("find0", "/", "-") as stream:
            assert stream.read(3) == b"x\0y"  # the rest is read and dropped
        assert guest.run("nothing") == ""
    assert fake.told()[:2] == [
        f"('add-drive', 'vda', 'protocol:nbd', 'server:unix:{tmp_path}/s', 'format:raw', 'readonly:true')",
        "('run',)",
    ]
    assert list(tmp_path.glob("vbackup-scratch-*")) == []


def test_stream_of_a_command_that_fails_has_nothing(fake: FakeGuestfish) -> None:
    fake.answer("download", with_=IsADirectoryError("download: /etc: is a directory"))
    with appliance.session([], stop=Stop()) as guest:
        with (
            pytest.raises(ApplianceRefusedError, match="is a directory"),
            guest.reading("download", "/etc", "-") as one,
        ):
            assert one.read() == b""
        assert guest.run("ls", "/") == ""


def test_secret_is_a_line_of_its_own(fake: FakeGuestfish) -> None:
    with appliance.session([], stop=Stop()) as guest:
        guest.run("cryptsetup-open", "/dev/sda1", "luks", secret=b"pass word")
    assert fake.told()[-2:] == ["('cryptsetup-open', '/dev/sda1', 'luks')", repr(b"pass word\n")]


def test_appliance_that_does_not_start(fake: FakeGuestfish) -> None:
    fake.answer("run", with_=OSError("guestfs_launch failed.\nThis usually means ..."))
    why = r"cannot be started: guestfs_launch failed\. 'libguestfs-test-tool'"
    with pytest.raises(ApplianceError, match=why), appliance.session([], stop=Stop()):
        pass


def test_long_cause_ends_with_a_word(fake: FakeGuestfish) -> None:
    fake.answer("run", with_=OSError("cause " * 100))
    with pytest.raises(ApplianceError, match=r"cause \.\.\. 'libguestfs"), appliance.session([], stop=Stop()):
        pass


CRASHED = OSError(
    "with KVM: appliance closed the connection unexpectedly.\nThis usually means the libguestfs appliance crashed.\n"
    "Do:\n  export LIBGUESTFS_DEBUG=1"
)


@pytest.fixture
def kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(appliance, "_KVM", tmp_path / "kvm")
    monkeypatch.delenv("LIBGUESTFS_BACKEND_SETTINGS", raising=False)


@pytest.mark.usefixtures("kvm")
def test_appliance_that_kvm_stops_is_started_without_it(fake: FakeGuestfish, tmp_path: Path) -> None:
    fake.answer("run", with_=CRASHED)
    steps: list[str] = []
    with appliance.session([Drive(tmp_path / "s", "vda")], stop=Stop(), step=steps.append) as guest:
        assert guest.run("ls", "/") == ""
    assert [told.partition(",")[0] for told in fake.told()] == ["('add-drive'", "('run'"] * 2 + ["('ls'"]
    assert steps[0] == "Starting libguestfs's appliance."
    assert "started without" in steps[1]
    assert len(steps) == 2
    assert list(tmp_path.glob("vbackup-scratch-*")) == []


@pytest.mark.usefixtures("kvm")
def test_settings_of_the_user_are_left_alone(fake: FakeGuestfish, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.answer("run", with_=CRASHED)
    monkeypatch.setenv("LIBGUESTFS_BACKEND_SETTINGS", "")
    why = r"started: with KVM: appliance closed the connection unexpectedly\. 'lib"
    with pytest.raises(ApplianceError, match=why), appliance.session([], stop=Stop()):
        pass
    assert fake.told() == ["('run',)"]


def test_guestfish_that_dies_or_hangs(fake: FakeGuestfish) -> None:
    fake.answer("df", with_=OSError("die"))
    fake.answer("du", with_=OSError("hang"))
    with appliance.session([], stop=Stop()) as guest, pytest.raises(ApplianceError, match=r"ended \(it is over\)"):
        guest.run("df")
    with appliance.session([], stop=Stop()) as guest:
        with pytest.raises(ApplianceError, match="did not answer within 0 s"):
            guest.run("du", timeout_s=0.1)
        with pytest.raises(ApplianceError, match="cannot be used"):
            guest.run("df")


def test_signal_ends_the_wait_for_the_appliance(fake: FakeGuestfish) -> None:
    fake.answer("du", with_=OSError("hang"))
    stop = Stop()
    with appliance.session([], stop=stop) as guest:
        stop.request(15)
        with pytest.raises(InterruptedBySignalError):
            guest.run("du")


def test_missing_program_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    packages = "on Debian: libguestfs-tools, on Fedora: guestfs-tools"
    with pytest.raises(UnsuitableError, match=packages), appliance.session([], stop=Stop()):
        pass
