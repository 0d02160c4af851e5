"""Drop-ins are what systemd reads without a complaint, whatever paths and options are in them."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from vbackup.errors import UsageError
from vbackup.schedule import places
from vbackup.schedule.units import MARKER, Credential, Needs, argv, service, timer

TOP = Path(__file__).resolve().parents[3]
FULL = Needs(
    job="nightly",
    command=("/opt/my programs/100%/$HOME/vbackup", "--config", '/etc/"x"\\y.toml'),
    environment=(("VBACKUP_STATE", "/var/lib/my state"),),
    writable=(Path("/srv/backup"), Path("/usr/local/backup"), Path("/etc/my reports"), Path("/usr2")),
    credentials=(
        Credential("ops-url", Path("/etc/credstore/ops-url")),
        Credential("sealed", Path("/etc/credstore.encrypted/sealed"), is_encrypted=True),
    ),
    on_calendar=("*-*-* 01:30:00", "Sun *-03-* 03:30:00"),
    random_delay_s=600.0,
)
SIMPLE = Needs("nightly", ("/usr/bin/vbackup",), on_calendar=("*-*-* 01:30:00",))

needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")


def test_service_of_a_simple_job() -> None:
    assert service(SIMPLE) == f"{MARKER}\n[Service]\nExecStart=\nExecStart=:/usr/bin/vbackup run --due nightly\n"


def test_service_with_all_that_a_job_can_need() -> None:
    assert service(FULL).splitlines()[2:] == [
        "[Service]",
        "ExecStart=",
        'ExecStart=:"/opt/my programs/100%%/$HOME/vbackup" --config "/etc/\\"x\\"\\\\y.toml" run --due nightly',
        'Environment="VBACKUP_STATE=/var/lib/my state"',
        'ReadWritePaths="-/etc/my reports"',
        "ReadWritePaths=-/usr/local/backup",
        "LoadCredential=ops-url:/etc/credstore/ops-url",
        "SetCredential=ops-url:\\n",
        "LoadCredentialEncrypted=sealed:/etc/credstore.encrypted/sealed",
        "SetCredential=sealed:\\n",
    ]


def test_mail_of_a_user_is_not_kept_from_its_queue() -> None:
    """Whatever the shipped unit of a user forbids, which systemd can only do with NoNewPrivileges, is taken back."""
    harmless = {"Type", "ExecStart", "SyslogIdentifier", "OOMPolicy", "KillMode", "TimeoutStopSec", "Nice", "UMask"}
    shipped = (TOP / "hooks/systemd/user" / places.SERVICE).read_text().partition("[Service]")[2]
    settings = {line.partition("=")[0] for line in shipped.split() if "=" in line}
    lines = set(service(replace(SIMPLE, sends_mail=True)).splitlines()) - set(service(SIMPLE).splitlines())
    assert {line.partition("=")[0] for line in lines} == settings - harmless - {"SystemCallErrorNumber"}
    assert all(line.endswith(("=", "=no")) for line in lines)


def test_timer_has_times_and_delay() -> None:
    assert timer(FULL).splitlines()[2:] == [
        "[Timer]",
        "OnCalendar=",
        "OnCalendar=*-*-* 01:30:00",
        "OnCalendar=Sun *-03-* 03:30:00",
        "RandomizedDelaySec=600s",
    ]
    assert "RandomizedDelaySec" not in timer(SIMPLE)


def test_command_is_the_same_for_all_that_start_it() -> None:
    assert argv(SIMPLE) == ("/usr/bin/vbackup", "run", "--due", "nightly")


@pytest.mark.parametrize("path", ["/x\ny", "/x\n[Service]\nExecStart=/bin/evil", "/x\x00"])
def test_path_with_a_line_end_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="control character"):
        service(Needs("nightly", (path,)))
    with pytest.raises(UsageError, match="control character"):
        service(Needs("nightly", ("/usr/bin/vbackup",), writable=(Path("/etc") / path.strip("/"),)))


def installed(directory: Path, needs: Needs, *, is_user: bool = False) -> Path:
    """The units of a job, whose program is there."""
    for name in (places.SERVICE, places.TIMER, places.BOOT_TIMER):
        shipped = TOP / "hooks" / "systemd"
        path = shipped / "user" / name if is_user and name == places.SERVICE else shipped / name
        (directory / name).write_text(path.read_text().replace("/usr/bin/vbackup", "/bin/true"))
    for kind, text in (("service", service(needs)), ("timer", timer(needs))):
        drop_in = directory / f"vbackup@nightly.{kind}.d"
        drop_in.mkdir()
        (drop_in / "50-vbackup.conf").write_text(text)
    return directory


def verify(directory: Path, *, is_user: bool = False) -> subprocess.CompletedProcess[str]:
    units = [directory / f"vbackup@nightly.{kind}" for kind in ("service", "timer")]
    argv = ["systemd-analyze", "verify", "--man=no", *(["--user"] if is_user else []), *units]
    return subprocess.run(
        [*argv, directory / "vbackup-boot@nightly.timer"],
        env={**os.environ, "XDG_RUNTIME_DIR": str(directory)},
        capture_output=True,
        text=True,
        check=False,
    )


@needs_systemd
@pytest.mark.parametrize("is_user", [False, True])
def test_systemd_has_nothing_to_say_against_the_units(tmp_path: Path, *, is_user: bool) -> None:
    program = tmp_path / 'my "programs"' / "100% $HOME" / "vbackup"
    program.parent.mkdir(parents=True)
    program.symlink_to("/bin/true")
    units = tmp_path / "units"
    units.mkdir()
    needs = Needs(
        **{
            **vars(FULL),
            "command": (str(program), *FULL.command[1:]),
            "sends_mail": is_user,
        }  # systemd looks whether it is there
    )
    done = verify(installed(units, needs, is_user=is_user), is_user=is_user)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
def test_verification_finds_what_is_wrong(tmp_path: Path) -> None:
    """So that the test before this one can fail."""
    units = tmp_path / "units"
    units.mkdir()
    installed(units, SIMPLE)
    (units / "vbackup@nightly.service.d" / "60-x.conf").write_text("[Service]\nExecStart=\nExecStart=/no/such\nX=y\n")
    done = verify(units)
    assert "Unknown key" in done.stderr
    assert "/no/such" in done.stderr
