"""What is written is read to an equal configuration, whatever is in it, and has nothing that steers a terminal."""

from __future__ import annotations

from dataclasses import replace
from datetime import time
from pathlib import Path

import pytest
import tomllib
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.config.conftest import Load
from tests.unit.config.test_loading import WHOLE
from vbackup.config import loading, writing
from vbackup.config.calendar import Calendar, Window
from vbackup.config.model import (
    Config,
    Job,
    Notifier,
    Options,
    Place,
    RepositoryEntry,
    Secret,
    TargetEntry,
    When,
)

HERE = Place(Path("/x.toml"), 1)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,6}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)
PATHS = TEXTS.map(lambda text: Path("/") / text.lstrip("/").replace("//", "/"))
SECRETS = st.one_of(
    st.builds(Secret, file=PATHS),
    st.builds(Secret, command=st.lists(TEXTS, min_size=1, max_size=3).map(tuple)),
    st.builds(Secret, credential=NAMES),
)
NOTIFIERS = st.one_of(
    st.builds(lambda secret: {"ping": secret}, SECRETS),
    st.builds(lambda secret, key: {"webhook": secret, "secret": key}, SECRETS, st.one_of(st.none(), SECRETS)),
    st.builds(lambda secret: {"apprise": secret}, SECRETS),
    st.builds(
        lambda words, sender, program: {"mail_to": tuple(words), "mail_from": sender, "sendmail": program},
        *(st.lists(TEXTS, min_size=1), TEXTS, st.one_of(st.none(), PATHS)),
    ),
)
TIMES = st.builds(time, st.integers(0, 23), st.integers(0, 59))
BACKUP: st.SearchStrategy[Options] = st.fixed_dictionaries(
    {},
    optional={
        "parallel": st.integers(1, 1000).map(str),
        "speed": st.sampled_from(("50M", "1000000", "1.5GB/s")),
        "with-media": st.booleans(),
        "disk": st.lists(TEXTS, min_size=1, max_size=3).map(tuple),
        "note": st.sampled_from(("a note", "7", "true", "für später")),
        "compress": st.sampled_from(("auto", "none", "zstd")),
        "fleecing": PATHS.map(str),
    },
)
PRUNE: st.SearchStrategy[Options] = st.fixed_dictionaries(
    {"keep-daily": st.integers(1, 1_000_000).map(str)}, optional={"keep-within": st.just("1y6m")}
)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """A configuration that could be in files."""
    repositories = {name: Path(f"/repositories/{name}") for name in draw(st.sets(NAMES, min_size=1, max_size=3))}
    targets = draw(st.sets(NAMES, max_size=2))
    notifiers = draw(st.dictionaries(NAMES, NOTIFIERS, max_size=2))
    jobs = {}
    for name in draw(st.sets(NAMES, max_size=3)):
        times = tuple(sorted(draw(st.sets(TIMES, max_size=3))))
        days = draw(st.frozensets(st.integers(0, 6), min_size=1))
        jobs[name] = Job(
            name,
            draw(st.sampled_from(sorted(repositories))),
            HERE,
            connect=tuple(draw(st.lists(TEXTS, max_size=2))),
            domains=tuple(draw(st.lists(TEXTS, max_size=2))),
            exclude=tuple(draw(st.lists(TEXTS, max_size=2))),
            calendar=Calendar(times, days) if times else None,
            window=None if times else draw(st.one_of(st.none(), st.just(Window(time(22), time(6))))),
            random_delay_s=draw(st.sampled_from((0.0, 0.5, 90.0, 600.0, 86400.0))) if times else 0.0,
            max_age_s=draw(st.sampled_from((60.0, 90.5, 93600.0, 31536000.0))),
            copy_to=tuple(draw(st.sets(st.sampled_from(sorted(targets)))) if targets else ()),
            notify=draw(st.one_of(st.none(), st.just(()), st.just(tuple(sorted(notifiers))))),
            options=draw(st.fixed_dictionaries({}, optional={"backup": BACKUP, "prune": PRUNE, "verify": st.just({})})),
        )
    return Config(
        (HERE.path,),
        {name: RepositoryEntry(name, path, HERE) for name, path in repositories.items()},
        {name: TargetEntry(name, "s3://bucket/x", {"copy": {"immutable": "5"}}, HERE) for name in targets},
        jobs,
        {
            name: Notifier(name, HERE, draw(st.frozensets(st.sampled_from(When), min_size=1)), timeout_s=9.5, **way)
            for name, way in notifiers.items()
        },
        metrics_file=draw(st.one_of(st.none(), PATHS)),
        report_html=draw(st.one_of(st.none(), PATHS)),
    )


@given(configs())
@settings(deadline=None)
def test_what_is_written_is_read_to_an_equal_configuration(config: Config) -> None:
    text = writing.toml(config)
    loaded = loading.parsed(Path("/x.toml"), text)
    assert loaded.faults == ()
    assert loaded.config == config
    assert writing.toml(loaded.config) == text
    assert all(line.isprintable() for line in text.split("\n"))


def test_defaults_are_written_into_each_job(load: Load) -> None:
    config = load(WHOLE).config
    tables = tomllib.loads(writing.toml(config))
    assert "defaults" not in tables
    assert tables["job"]["by-hand"]["notify"] == ["ops"]
    assert tables["job"]["nightly"]["backup"]["freeze-limit"] == "30s"
    assert tables["job"]["nightly"]["prune"] == {"keep-daily": 7}
    assert tables["notify"]["ops"]["ping"] == {"file": "/etc/vbackup/ping"}
    assert loading.parsed(Path("/x.toml"), writing.toml(config)).config == config


def test_hourly_stays_a_word(load: Load) -> None:
    config = load("[repository.a]\npath='/a'\n[job.a]\nat='hourly'\n").config
    assert writing.tables(config)["job"]["a"]["at"] == "hourly"
    changed = replace(config.jobs["a"], calendar=Calendar((time(1),)))
    assert writing.tables(replace(config, jobs={"a": changed}))["job"]["a"]["at"] == ["01:00"]


@pytest.mark.parametrize(
    ("number_s", "text"),
    [(0, "0s"), (90, "1m30s"), (600, "10m"), (93600, "26h"), (86400, "1d"), (0.25, "0.25s"), (481200, "5d13h40m")],
)
def test_times_are_as_people_write_them(number_s: float, text: str) -> None:
    assert writing.seconds(number_s) == text


def test_text_that_steers_a_terminal_is_escaped() -> None:
    text = 'a"\\\x1b[31m\u202e\U000e0001\n'
    assert writing.basic(text).isprintable()
    assert tomllib.loads(f"x = {writing.basic(text)}")["x"] == text
