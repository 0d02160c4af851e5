"""Every fault of a configuration has its file and line, says what is valid, and stops everything."""

from __future__ import annotations

import json
import os
from datetime import time, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.config.conftest import Load
from tests.unit.config.test_times import ANYTHING
from vbackup.config import documents, keys, loading
from vbackup.config.calendar import Calendar, Window
from vbackup.config.model import Config, Place, Secret, When
from vbackup.errors import ConfigError, NoConfigError

WHOLE = """\
[repository.main]
path = "/srv/backup"

[target.offsite]
url = "s3://bucket/web"

[target.offsite.copy]
full-every = 30
recipients-file = "/etc/vbackup/recipients"
bwlimit = "50M"
target-config = "/etc/vbackup/s3"

[target.offsite.prune]
keep-daily = 30

[defaults]
notify = ["ops"]
random-delay = "10m"

[defaults.backup]
freeze-limit = "30s"
quiesce = "required"

[job.nightly]
repository = "main"
connect = ["qemu:///system"]
domains = ["web*", "db"]
exclude = ["web-test"]
at = ["01:00", "13:30"]
on = ["sat", "sun"]
window = "00:00-18:00"
copy-to = ["offsite"]

[job.nightly.backup]
full-every = "30d"
quiesce = "auto"
compress = true
disk = ["vda"]

[job.nightly.prune]
keep-daily = 7

[job.nightly.verify]
sample = 5

[job.by-hand]

[notify.ops]
when = ["failure", "recovery"]
ping = { file = "/etc/vbackup/ping" }
timeout = "10s"

[notify.mail]
mail-to = ["root@localhost"]

[metrics]
textfile = "/var/lib/node/vbackup.prom"

[report]
html = "/srv/www/report.html"
"""


def test_whole_configuration(load: Load, tmp_path: Path) -> None:
    loaded = load(WHOLE)
    assert loaded.faults == ()
    config, file = loaded.config, tmp_path / "vbackup.toml"
    assert config.paths == (file,)
    assert config.repositories["main"].path == Path("/srv/backup")
    assert config.repositories["main"].place == Place(file, 1)
    assert config.targets["offsite"].options == {
        "copy": {
            "full-every": "30",
            "recipients-file": ("/etc/vbackup/recipients",),
            "bwlimit": "50M",
            "target-config": "/etc/vbackup/s3",
        },
        "prune": {"keep-daily": "30", "target-config": "/etc/vbackup/s3"},
    }
    job = config.jobs["nightly"]
    assert (job.repository, job.connect, job.domains) == ("main", ("qemu:///system",), ("web*", "db"))
    assert (job.exclude, job.copy_to, job.notify) == (("web-test",), ("offsite",), ("ops",))
    assert job.calendar == Calendar((time(1), time(13, 30)), frozenset({5, 6}))
    assert job.window == Window(time(0), time(18))
    assert job.random_delay_s == 600
    assert job.max_age_s == timedelta(days=5, hours=11, minutes=30 + 10 + 120).total_seconds()
    assert job.options == {
        "backup": {
            "full-every": "30d",
            "quiesce": "auto",
            "compress": "auto",
            "disk": ("vda",),
            "freeze-limit": "30s",
        },
        "prune": {"keep-daily": "7"},
        "verify": {"sample": "5"},
    }
    by_hand = config.jobs["by-hand"]
    assert (by_hand.repository, by_hand.domains, by_hand.calendar, by_hand.max_age_s) == ("main", (), None, None)
    ops, mail = config.notifiers["ops"], config.notifiers["mail"]
    assert (ops.when, ops.timeout_s) == ({When.FAILURE, When.RECOVERY}, 10)
    assert ops.ping == Secret(file=Path("/etc/vbackup/ping"))
    assert mail.when == {When.FAILURE, When.RECOVERY, When.OVERDUE, When.UNUSUAL}
    assert (mail.mail_to, mail.timeout_s) == (("root@localhost",), 30)
    assert (config.metrics_file, config.report_html, config.report_text) == (
        Path("/var/lib/node/vbackup.prom"),
        Path("/srv/www/report.html"),
        None,
    )
    lines = WHOLE.split("\n")
    for name, at in config.origins.items():
        assert name.rpartition(".")[2] in lines[at.line - 1], name
    assert config.origins["job.nightly.backup.quiesce"].line > config.origins["job.nightly.backup.freeze-limit"].line
    assert config.origins["job.by-hand.notify"] == config.origins["job.nightly.notify"]


MAIN = "[repository.main]\npath = '/r'\n"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        # What is unknown
        ("[jobs.x]\n", 1, "Unknown table or key 'jobs'; the closest is 'job'."),
        ("\nrepository = 1\n", 2, "'repository' should be tables with a name: [repository.NAME]."),
        ("[repository]\nmain = '/r'\n", 2, "'main' should be a table with a name: [repository.NAME]."),
        ("[[job.a]]\nat = '01:00'\n", 1, "'a' should be a table with a name: [job.NAME]."),
        ("[defaults]\nkeep-daily = 7\n", 2, "Unknown key 'keep-daily' in [defaults]; there are: repository, "),
        (
            MAIN + "[job.a.prune]\nkeep-daily = 7\nkeep-dayly = 7\n",
            5,
            "Unknown key 'keep-dayly' in [job.a.prune]; the closest is 'keep-daily'.",
        ),
        (MAIN + "[job.a.prun]\nkeep-daily = 7\n", 3, "Unknown table 'prun' in [job.a]; the closest is 'prune'."),
        (MAIN + "[job.a]\nprune = 3\n", 4, "'prune' should be a table: [job.a.prune]."),
        (MAIN + "[job.a.backup]\ndry-run = true\n", 4, "Unknown key 'dry-run' in [job.a.backup]"),
        (MAIN + "[job.'a b']\n", 3, "'a b' cannot be a name of [job.NAME]: it should have 1 to 63 letters"),
        # Types and grammar
        (MAIN + "[job.a.prune]\nkeep-daily = '7d'\n", 4, "'keep-daily' in [job.a.prune] should be a whole number: "),
        (
            MAIN + "[job.a.backup]\ngroup = 'yes'\n",
            4,
            "'group' in [job.a.backup] should be true or false: it is 'yes'.",
        ),
        (MAIN + "[job.a]\ndomains = [\n'x',\n\n3]\n", 7, "'domains' in [job.a] should be a string, or an array"),
        (MAIN + "[job.a]\nat = '25:00'\n", 4, "'at' in [job.a] should be 'hourly', a time such as '01:00'"),
        # What is missing
        ("[repository.main]\n", 1, "[repository.main] has no 'path'."),
        ("[target.t]\n[target.t.copy]\n", 1, "[target.t] has no 'url'."),
        ("\n[job.a]\n", 2, "[job.a] has no 'repository', and there is none: add [repository.NAME]."),
        (MAIN + "[repository.b]\npath='/b'\n[job.a]\n", 5, "[job.a] has no 'repository', and there are main, b."),
        (MAIN + "[job.a.prune]\n", 3, "[job.a.prune] has no rule, so it would keep everything"),
        ("[target.t]\nurl='/t'\n[target.t.prune]\n", 3, "[target.t.prune] has no rule"),
        # Names that nothing has
        (
            MAIN + "[job.a]\nrepository = 'mian'\n",
            4,
            "'repository' of [job.a] names 'mian', which is no [repository.NAME]; the closest is 'main'.",
        ),
        (MAIN + "[job.a]\ncopy-to = ['x']\n", 4, "'copy-to' of [job.a] names 'x', which is no [target.NAME]."),
        (
            MAIN + "[notify.b]\nmail-to='x'\n[job.a]\nnotify=[\n'b',\n'c']\n",
            8,
            "'notify' of [job.a] names 'c', which is no [notify.NAME]; there are: b.",
        ),
        # What contradicts itself
        (MAIN + "[repository.b]\npath = '/x/../r'\n", 4, "/x/../r is also repository 'main' ("),
        (
            MAIN + "[job.a]\nwindow = '22:00-06:00'\nat = '12:00'\n",
            4,
            "The job runs at 12:00, which is not in its window 22:00-06:00.",
        ),
        (
            MAIN + "[job.a]\nwindow = '05:00-05:00'\n",
            4,
            "'window' in [job.a] should be a string such as '22:00-06:00': '05:00-05:00' never opens",
        ),
        (MAIN + "[job.a]\non = ['sat']\n", 4, "'on' of [job.a] needs 'at', the time of day."),
        (MAIN + "[job.a]\ndomains = []\n", 4, "'domains' is empty: leave it out for all domains."),
        (
            MAIN + "[job.a]\nconnect='qemu:///system'\nhosts='/h'\n",
            5,
            "'connect' and 'hosts' of [job.a] exclude each other.",
        ),
        (
            MAIN + "[job.a.backup]\nscripts='/s'\nno-scripts=true\n",
            5,
            "'scripts' and 'no-scripts' in [job.a.backup] exclude each other.",
        ),
        (
            MAIN + "[job.a.backup]\ntls-creds='/s'\n",
            4,
            "'tls-creds' in [job.a.backup] is only for transport = \"tls\".",
        ),
        (
            MAIN + "[job.a.backup]\nlevel='full'\nfull-every='30d'\n",
            5,
            "'full-every' in [job.a.backup] is only for level = \"auto\".",
        ),
        (MAIN + "[job.a.verify]\nboot-exec='true'\n", 4, "'boot-exec' in [job.a.verify] is only for boot = true."),
        (
            "[target.t]\nurl = 'copies'\n",
            2,
            "'url' in [target.t] should be a string: it should be an absolute path, or an address such as ssh://HOST/DIR",
        ),
        # Notifiers
        (
            "[notify.a]\nwhen = 'always'\n",
            1,
            "[notify.a] should have exactly one of 'mail-to', 'ping', 'webhook', 'apprise'; it has none.",
        ),
        ("[notify.a]\nmail-to = 'x'\nping = {file = '/p'}\n", 3, "[notify.a] should have exactly one of"),
        (
            "[notify.a]\nping = 'https://hc-ping.com/uuid'\n",
            2,
            "'ping' in [notify.a] should be one of { file = PATH }",
        ),
        ("[notify.a]\nping = {file = '/p', command = ['x']}\n", 2, "'ping' in [notify.a] should be one of"),
        ("[notify.a]\nping = {}\n", 2, "'ping' in [notify.a] should be one of"),
        (
            "[notify.a]\n[notify.a.ping]\nfiel = '/p'\n",
            3,
            "Unknown key 'fiel' in [notify.a.ping]; the closest is 'file'.",
        ),
        (
            "[notify.a]\nping = {file = '/p'}\nmail-from = 'x'\n",
            3,
            "'mail-from' in [notify.a] is for 'mail-to' only.",
        ),
        (
            "[notify.a]\nmail-to = 'x'\nsecret = {file = '/k'}\n",
            3,
            "'secret' in [notify.a] is for 'webhook' only.",
        ),
        (
            "[notify.a]\nping = {file = '/p'}\nsendmail = '/s'\n",
            3,
            "'sendmail' in [notify.a] is for 'mail-to' only.",
        ),
        (
            "[notify.a]\nmail-to='x'\nwhen = ['failures']\n",
            3,
            ("'when' in [notify.a] should be a string, or an array of strings: it is 'failures'; the closest is"
            " 'failure'."),
        ),
        ("[notify.a]\nmail-to='x'\ntimeout = 0\n", 3, "'timeout' in [notify.a] should be"),
    ],
)  # fmt: skip
def test_fault_has_file_line_and_what_is_valid(load: Load, tmp_path: Path, text: str, line: int, said: str) -> None:
    loaded = load(text)
    found = [str(one) for one in loaded.faults]
    assert any(one.startswith(f"{tmp_path}/vbackup.toml:{line}: {said}") for one in found), found
    with pytest.raises(ConfigError) as caught:
        loading.read([tmp_path / "vbackup.toml"])
    assert caught.value.status == 2
    more = f" There are {len(found) - 1} more faults: " if len(found) > 2 else " There is 1 more fault: "
    assert str(caught.value).partition(more)[0] == found[0]
    assert (f"'vbackup config check --config {tmp_path}/vbackup.toml' lists" in str(caught.value)) is (len(found) > 1)


def test_a_secret_in_the_place_of_its_reference_is_not_repeated(load: Load) -> None:
    (fault, *_) = load("[notify.a]\nping = 'https://hc-ping.com/5e0a3c1d'\n").faults
    assert "5e0a3c1d" not in str(fault)


@pytest.mark.parametrize("url", ["s3://AKIA:hunter2@bucket/x", "s3://hunter2@bucket", "ssh://me:hunter2@host/x"])
def test_address_with_a_secret_is_refused_and_not_shown(load: Load, url: str) -> None:
    (fault,) = load(f"[target.t]\nurl = '{url}'\n").faults
    assert "it has a secret in it" in str(fault)
    assert "hunter2" not in str(fault)
    assert fault.line == 2


@pytest.mark.parametrize("url", ["/srv/x", "file:///srv/x", "ssh://me@host:22/x", "s3://bucket", "az://c/p", "gs://b"])
def test_address_of_each_kind_is_accepted(load: Load, url: str) -> None:
    loaded = load(f"[target.t]\nurl = '{url}'\n")
    assert loaded.faults == ()
    assert loaded.config.targets["t"].url == url


def test_all_faults_are_found_in_the_order_of_files_and_lines(load: Load) -> None:
    loaded = load(
        "[repository.main]\npath = 'r'\n[job.a]\nx = 1\nat = 'never'\n",
        "[job.b]\nrepository = 'none'\n[job.b.prune]\nkeep-daily = 0\n",
    )
    assert [(Path(one.path).name, one.line) for one in loaded.faults] == [
        ("vbackup.toml", 2),
        ("vbackup.toml", 4),
        ("vbackup.toml", 5),
        ("1.toml", 2),
        ("1.toml", 4),
    ]


@pytest.mark.parametrize("name", ["a:b", "a b", "../a", "%h"])
def test_credential_that_no_unit_can_name_is_refused(load: Load, name: str) -> None:
    [fault] = load(f"[notify.a]\nping = {{ credential = '{name}' }}\n").faults[:1]
    assert f"{name!r} should have 1 to 255 letters, digits and any of _.@+-" in str(fault)


def test_rule_that_is_misspelled_is_told_and_not_that_there_is_none(load: Load) -> None:
    [fault] = load(MAIN + "[job.a.prune]\nkeep-dayly = 7\n").faults
    assert "Unknown key 'keep-dayly' in [job.a.prune]; the closest is 'keep-daily'." in str(fault)


def test_fault_of_one_key_is_told_once(load: Load) -> None:
    assert len(load("[repository.main]\npath = 'r'\n[job.a]\n[job.b]\nrepository = 'main'\n").faults) == 1
    assert len(load(MAIN + "[defaults]\nnotify = ['x']\n[job.a]\n[job.b]\n").faults) == 2  # of two jobs


def test_repository_that_is_there_twice_by_a_link_is_a_fault(load: Load, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (fault,) = load(f"[repository.a]\npath='{tmp_path}/real'\n[repository.b]\npath='{tmp_path}/link'\n").faults
    assert f"is also repository 'a' ({tmp_path}/vbackup.toml:1)" in str(fault)
    assert fault.line == 4


def test_two_jobs_of_one_name_are_a_fault_with_both_places(load: Load, tmp_path: Path) -> None:
    (fault,) = load(MAIN + "[job.a]\nat = '01:00'\n", "[job.a]\nat = '02:00'\n").faults
    assert str(fault).startswith(f"{tmp_path}/conf.d/1.toml:1: Table [job.a] is already at {tmp_path}/vbackup.toml:3")
    (fault,) = load(MAIN + "[job.a]\n[job.a]\n").faults
    assert fault.line == 4


def test_hourly_in_a_window_is_the_hours_in_it(load: Load) -> None:
    job = load(MAIN + "[job.a]\nat = 'hourly'\nwindow = '22:00-02:30'\n").config.jobs["a"]
    assert job.calendar == Calendar((time(0), time(1), time(2), time(22), time(23)))
    assert job.max_age_s == (20 + 2) * 3600
    (fault,) = load(MAIN + "[job.a]\nat = 'hourly'\nwindow = '22:10-22:50'\n").faults
    assert (fault.line, fault.fault) == (5, "No full hour lies in the window of [job.a].")


# [defaults]


def test_own_key_of_a_job_wins_key_by_key(load: Load) -> None:
    job = load(
        MAIN + "[defaults]\nat = '01:00'\nmax-age = '2d'\n[defaults.backup]\nspeed = 5\nlevel = 'full'\n"
        "[defaults.prune]\nkeep-last = 3\n[job.a]\nmax-age = '3d'\n[job.a.backup]\nlevel = 'auto'\n"
    ).config.jobs["a"]
    assert job.max_age_s == 3 * 86400
    assert job.calendar == Calendar((time(1),))
    assert job.options == {"backup": {"level": "auto", "speed": "5"}, "prune": {"keep-last": "3"}}


def test_default_that_makes_no_sense_beside_the_own_key_does_not_hold(load: Load) -> None:
    loaded = load(
        MAIN + "[defaults.backup]\nscripts = '/s'\nfull-every = '30d'\n"
        "[job.a.backup]\nno-scripts = true\nlevel = 'full'\n[job.b]\n"
    )
    assert loaded.faults == ()
    assert loaded.config.jobs["a"].options["backup"] == {"no-scripts": True, "level": "full"}
    assert loaded.config.jobs["b"].options["backup"] == {"scripts": "/s", "full-every": "30d"}


def test_fault_in_the_defaults_has_its_place_there(load: Load) -> None:
    (fault,) = load(MAIN + "[defaults]\nwindow = '22:00-06:00'\n[job.a]\nat = '12:00'\n").faults
    assert fault.line == 4


# Files


def test_without_files_it_is_said_how_to_begin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(documents, "SYSTEM", tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path.parent))
    with pytest.raises(NoConfigError, match="'vbackup config init' writes one"):
        loading.read()


def test_own_configuration_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = tmp_path / "vbackup"
    (place / "conf.d").mkdir(parents=True)
    (place / "vbackup.toml").write_text(MAIN)
    (place / "conf.d" / "jobs.toml").write_text("[job.a]\n")
    monkeypatch.setattr(documents, "SYSTEM", place)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    config = loading.read()
    assert config.paths == (place / "vbackup.toml", place / "conf.d" / "jobs.toml")
    assert config.jobs["a"].repository == "main"


def test_file_that_is_named_and_missing_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        loading.read([tmp_path / "none.toml"])


# Anything

WORDS = sorted(
    {key.name for table in (*keys.NAMED.values(), *keys.BELOW["job"].values(), keys.SECRET) for key in table}
)
NAMES = st.one_of(st.sampled_from([*keys.NAMED, *keys.SINGLE, *WORDS, "main", "backup", "a"]), st.text(max_size=4))
GOOD = st.sampled_from(
    ("/a", "main", "auto", "01:00", "30d", "5%", "50M", True, 7, ["/a"], {"file": "/a"}, "x\0", 10**30)
)
TREES = st.dictionaries(
    NAMES,
    st.recursive(
        st.one_of(GOOD, ANYTHING),
        lambda below: st.one_of(st.dictionaries(NAMES, below, max_size=4), st.lists(below, max_size=3)),
        max_leaves=20,
    ),
    max_size=5,
)


def toml(value: Any) -> str:
    """The value as TOML writes it in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(str(name))} = {toml(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, time):
        return value.isoformat()
    if value is None:
        return "nan"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


@given(trees=st.lists(TREES, min_size=1, max_size=2), broken=st.one_of(st.none(), st.integers(0, 200)))
@settings(deadline=None, max_examples=300)
def test_anything_is_a_configuration_or_a_fault(
    tmp_path_factory: pytest.TempPathFactory, trees: list[dict[str, Any]], broken: int | None
) -> None:
    directory = tmp_path_factory.mktemp("any", numbered=True)
    paths = []
    for number, tree in enumerate(trees):
        text = "".join(f"{toml(name)} = {toml(value)}\n" for name, value in tree.items())
        data = text.encode()
        if broken is not None and number == 0:
            data = data[:broken] + b"\xff'[" + data[broken + 2 :]
        paths.append(directory / f"{number}.toml")
        paths[-1].write_bytes(data)
    loaded = loading.load(paths)
    assert isinstance(loaded.config, Config)
    for fault in loaded.faults:
        assert fault.path in map(os.fspath, paths)
        lines = Path(fault.path).read_bytes().count(b"\n") + 1
        assert 0 <= fault.line <= lines
        assert str(fault).startswith(fault.path)
    if broken is not None and len(trees) == 1 and trees[0]:
        assert loaded.faults
