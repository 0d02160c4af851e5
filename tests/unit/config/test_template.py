"""The first configuration is valid as it is, and with all of its proposals."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from vbackup.config import loading
from vbackup.config.model import Config
from vbackup.config.template import FoundDomain, template

GIB = 1024**3
WEB = FoundDomain("web", True, 2, 30 * GIB)
DB = FoundDomain("db", False, 1, 8 * GIB)
ISO = FoundDomain("live-cd", True, 0, None, "it has no disk")
TEXTS = st.text(min_size=1, max_size=20)


def loaded(text: str) -> Config:
    found = loading.parsed(Path("/x.toml"), text)
    assert found.faults == (), text
    return found.config


def uncommented(text: str) -> str:
    """The file with all its proposals."""
    return re.sub(r"^#(?=[\[a-z])", "", text, flags=re.MULTILINE)


def test_it_backs_up_all_domains_every_night() -> None:
    config = loaded(template([WEB, DB], repository="/srv/backup"))
    job = config.jobs["nightly"]
    assert config.repositories["main"].path == Path("/srv/backup")
    assert job.domains == ()
    assert job.calendar is not None
    assert [str(one) for one in job.calendar.times] == ["01:00:00"]
    assert job.options["prune"] == {"keep-daily": "7", "keep-weekly": "4", "keep-monthly": "12"}
    assert job.options["verify"] == {"sample": "2"}
    assert job.options["audit"] == {"sample": "1"}


def test_proposals_are_valid_too() -> None:
    text = uncommented(template([WEB, DB], repository="/srv/backup", connect=["qemu:///system"]))
    config = loaded(text)
    job = config.jobs["nightly"]
    assert job.domains == ("web", "db")
    assert job.copy_to == ("offsite",)
    assert job.connect == ("qemu:///system",)
    assert set(config.notifiers) == {"mail", "healthchecks"}
    assert config.metrics_file is not None
    assert config.report_html is not None
    assert config.targets["offsite"].options["prune"] == {"keep-daily": "30"}


def test_comments_say_what_there_is() -> None:
    text = template([WEB, DB, ISO], repository="/srv/backup", free_bytes=100 * GIB, where="qemu:///system")
    assert "#   web      running   2 disks, 30.0 GiB\n" in text
    assert "#   db       shut off  1 disk, 8.0 GiB\n" in text
    assert "#   live-cd  cannot be backed up: it has no disk\n" in text
    assert (
        "# The disks below have 38.0 GiB; a full backup takes what is in use of them. 100.0 GiB are free there." in text
    )
    assert "libvirt has (qemu:///system):" in text
    assert max(map(len, text.split("\n"))) <= 120


def test_it_is_valid_without_domains() -> None:
    text = template([], repository="/srv/backup")
    assert "libvirt has none now" in text
    assert loaded(text).jobs["nightly"].domains == ()
    loaded(uncommented(text))


def test_long_lists_are_cut() -> None:
    text = template([FoundDomain(f"d{number}", True, 1, GIB) for number in range(250)], repository="/r")
    assert "#   and 150 more\n" in text
    loaded(text)


@given(TEXTS, TEXTS, TEXTS, st.lists(TEXTS, max_size=2))
def test_names_of_any_kind_break_nothing(name: str, reason: str, where: str, connect: list[str]) -> None:
    domains = [FoundDomain(name, True, 1, None), FoundDomain(name, True, 1, 5, reason)]
    text = template(domains, repository="/r", connect=["x", *connect], where=where)
    found = loading.parsed(Path("/x.toml"), text)
    assert all("job.nightly" in fault.fault and "connect" in fault.fault for fault in found.faults)
    assert found.config.jobs["nightly"].options["audit"] == {"sample": "1"}
    assert all(line.isprintable() for line in text.split("\n"))
