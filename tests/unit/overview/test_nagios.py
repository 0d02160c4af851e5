"""One line, its status and its performance data, as the guidelines for plugins have them."""

from __future__ import annotations

import re

import pytest

from tests.unit.overview.examples import (
    DAY,
    FAULT,
    OTHER,
    domain,
    facts,
    glance,
    job,
    live,
    made,
    repository,
)
from vbackup.overview import assess, nagios
from vbackup.overview.facts import Facts

#: 'label'=value[UOM];[warn];[crit];[min];[max]
DATUM = re.compile(r"(?P<label>'[^'=|]+'|[^'=| ]+)=(?P<value>\d+)(?P<unit>s|B)?;[^;]*;[^;]*;\d*(;\d*)?")


def line(known: Facts) -> str:
    return nagios.line(assess.overview(known))


def data(text: str) -> dict[str, str]:
    """The performance data, every part of which has to be valid."""
    rest, found = text.partition(" | ")[2], {}
    while rest:
        match = DATUM.match(rest)
        assert match is not None, rest
        found[match["label"]] = match["value"] + (match["unit"] or "")
        rest = rest[match.end() :].lstrip()
    return found


def test_all_is_well() -> None:
    text = line(facts())
    assert text.startswith("VBACKUP OK - 1 of 1 domains backed up, the oldest 8 h ago | ")
    assert data(text) == {
        "domains": "1",
        "overdue": "0",
        "never": "0",
        "damaged": "0",
        "jobs_not_ok": "0",
        "oldest": "28800s",
        "'main free'": f"{500 << 30}B",
    }


def test_a_domain_that_was_never_backed_up_counts() -> None:
    text = line(facts(jobs=(job(live(), live("new", OTHER)),)))
    assert text.startswith("VBACKUP CRITICAL - 1 of 2 domains backed up, the oldest 8 h ago; new: It was never backed")
    assert (data(text)["never"], data(text)["domains"]) == ("1", "2")


def test_what_is_worst_is_told_first_and_the_clock_before_all() -> None:
    unmounted = repository(name="usb", fault=FAULT, free_bytes=None, size_bytes=None)
    silent = facts(
        jobs=(job(live(), runs=()),), repositories=(repository(domain()), unmounted), warnings=("A host is silent.",)
    )
    told = line(silent).partition(" | ")[0].split("; ")
    assert told[0].startswith("VBACKUP CRITICAL - ")
    assert told[1:] == [
        "A host is silent.",
        f"repository usb: {FAULT.message}",
        "job nightly: It has never run.",
    ]
    assert "usb" not in line(silent).partition(" | ")[2]


def test_a_domain_that_is_gone_counts_no_more() -> None:
    text = line(facts(jobs=(job(),), repositories=(repository(domain(glance(made(30 * DAY)))),)))
    assert text.startswith("VBACKUP UNKNOWN - No domain is known that is to be backed up | ")
    assert data(text)["domains"] == "0"


def test_the_line_stays_short_and_one_line_whatever_it_tells() -> None:
    many = tuple(
        domain(glance(made(30 * DAY), uuid=f"f0000000-0000-4000-8000-{number:012d}", name=f"guest{number}"))
        for number in range(300)
    )
    strange = facts(
        jobs=(job(error="silence", repository="it's=a|b"),),
        repositories=(repository(*many, name="it's=a|b"),),
        warnings=(f"One | two\nthree {'x' * 1000}.",),
    )
    text = line(strange)
    assert "\n" not in text
    assert text.count("|") == 1
    assert "One / two three x" in text
    assert "and 297 more" in text
    assert len(text) < 2000
    assert data(text)["'it_s_a_b free'"]


def test_nothing_to_judge_is_unknown() -> None:
    assert line(facts(jobs=(), repositories=())).startswith("VBACKUP UNKNOWN - Nothing is to be backed up: ")
    silent = facts(jobs=(job(error="x"),), repositories=(repository(),), warnings=("A host is silent.",))
    assert line(silent).startswith(
        "VBACKUP UNKNOWN - No domain is known that is to be backed up; A host is silent.; New domains of job"
    )


@pytest.mark.parametrize("message", ["No configuration.\nIs it there?", "a | b"])
def test_what_could_not_be_found_out_is_unknown(message: str) -> None:
    text = nagios.unknown(message)
    assert text.startswith("VBACKUP UNKNOWN - ")
    assert not set("\n|") & set(text)


def test_of_a_repository_that_cannot_be_read_nothing_is_counted() -> None:
    unmounted = repository(fault=FAULT, free_bytes=None, size_bytes=None)
    text = line(facts(repositories=(unmounted,)))
    told = "VBACKUP CRITICAL - not known whether domains are backed up: main cannot be read; "
    assert text.startswith(f"{told}repository main: {FAULT.message} | ")
    usb = repository(name="usb", fault=FAULT, free_bytes=None, size_bytes=None)
    both = line(facts(repositories=(repository(domain()), usb)))
    assert "- 1 of 1 domains backed up, the oldest 8 h ago, more are not known; repository usb: " in both


def test_a_domain_with_damage_does_not_count_as_backed_up() -> None:
    damaged = domain(glance(made(), uuid=OTHER, name="db", damaged=(made().id,)))
    text = line(facts(jobs=(job(live(), live("db", OTHER)),), repositories=(repository(domain(), damaged),)))
    assert text.startswith(
        "VBACKUP CRITICAL - 1 of 2 domains backed up, the oldest 8 h ago; db: A verify has found damage"
    )


def test_domains_that_may_be_new_are_not_passed_over() -> None:
    text = line(facts(jobs=(job(error="silence"),), warnings=("A host is silent.",)))
    assert text.startswith("VBACKUP WARNING - 1 of 1 domains backed up")
    assert "; A host is silent.; New domains of job nightly are not known, because libvirt could not be asked" in text
