"""The file of a job is what cron reads, and its command is what the shell reads, whatever is in it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from vbackup.errors import UsageError
from vbackup.schedule.cron import MARKER, cron_line, name, text
from vbackup.schedule.units import Needs

HOST = "hv1"
#: crontab(5): minute, hour, day of month, month, day of week, user, command.
LINE = re.compile(r"(?P<minutes>[0-9,]+) \* \* \* \* root (?P<command>.+)")


def needs(*command: str, job: str = "nightly", **environment: str) -> Needs:
    return Needs(job, command or ("/usr/bin/vbackup",), environment=tuple(environment.items()))


def test_file_of_a_job() -> None:
    lines = text(needs(), host=HOST).splitlines()
    assert lines[0] + "\n" == MARKER
    assert lines[1:4] == [
        "SHELL=/bin/sh",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        'MAILTO=""',
    ]
    match = LINE.fullmatch(lines[4])
    assert match is not None
    assert match["command"] == "/usr/bin/vbackup run --due nightly >/dev/null 2>&1"
    assert len(lines) == 5
    minutes = [int(one) for one in match["minutes"].split(",")]
    assert [later - earlier for earlier, later in zip(minutes, minutes[1:])] == [15, 15, 15]
    assert 0 <= minutes[0] < 15


def test_hosts_and_jobs_ask_at_different_minutes() -> None:
    first = {text(needs(job=f"job{number}"), host=HOST).splitlines()[-1].split(",")[0] for number in range(100)}
    assert len(first) == 15
    assert text(needs(), host=HOST) == text(needs(), host=HOST)


def test_line_of_a_users_table_has_no_user() -> None:
    assert " root " not in cron_line(needs(), host=HOST, is_user=True)


def test_name_of_a_file_is_one_that_cron_reads() -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]+", name("weekly_2-full"))
    with pytest.raises(UsageError):
        name("a.b")  # cron reads no file with a dot in its name


def as_cron_runs_it(line: str) -> str:
    """What cron gives to the shell: up to the first "%" that is not escaped."""
    match = LINE.fullmatch(line)
    assert match is not None
    command = re.match(r"(?:\\%|[^%])*", match["command"])
    assert command is not None
    assert command[0] == match["command"], "the rest would be its standard input"
    return command[0].replace("\\%", "%")


def test_shell_gets_the_words_as_they_are(tmp_path: Path) -> None:
    program = tmp_path / "my %d 'programs' $HOME \"x\" \\" / "vbackup"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" "$VBACKUP_STATE" > "{tmp_path}/argv"\n')
    program.chmod(0o755)
    content = text(needs(str(program), "--config", "/a b;c`id`", VBACKUP_STATE="/var/100%"), host=HOST)
    subprocess.run(["/bin/sh", "-c", as_cron_runs_it(content.splitlines()[-1])], check=True)
    words = ["--config", "/a b;c`id`", "run", "--due", "nightly", "/var/100%"]
    assert (tmp_path / "argv").read_text().splitlines() == words


@pytest.mark.skipif(not shutil.which("crontab"), reason="needs crontab")
def test_cron_has_nothing_to_say_against_the_file(tmp_path: Path) -> None:
    """crontab looks at a user's table, which has no column for the user."""
    table = tmp_path / "table"
    content = text(needs("/my 100% program", VBACKUP_STATE="/x y"), host=HOST)
    for changed, status in ((content, 0), (content.replace(" * * * *", " 25 * * *"), 1)):
        table.write_text(changed.replace(" root ", " "))
        assert subprocess.run(["crontab", "-n", table], capture_output=True, check=False).returncode == status


def test_command_is_one_of_a_shell() -> None:
    command = as_cron_runs_it(text(needs("/x y"), host=HOST).splitlines()[-1])
    assert shlex.split(command)[:4] == ["/x y", "run", "--due", "nightly"]
