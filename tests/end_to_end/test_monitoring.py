"""Prometheus, node-exporter, Nagios, Icinga and Zabbix take what vbackup gives them, and their examples are valid."""

from __future__ import annotations

import http
import json
import os
import re
import shutil
import socket
import stat
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.monitors import LIBRARIES, MONITORS, program, run, running
from tests.unit.builders import UUID, backup, commit, image
from vbackup import names
from vbackup.cli import main
from vbackup.model import Backup, BlocksRecord, ChangeRecord, Level
from vbackup.overview.metrics import METRICS
from vbackup.repository import manifest
from vbackup.repository.repository import Repository

INTEGRATIONS = Path(__file__).parents[2] / "integrations"
DASHBOARD = INTEGRATIONS / "grafana" / "vbackup.json"
RULES = INTEGRATIONS / "prometheus" / "vbackup.rules.yml"
#: A name of a metric; in texts for people there are words such as vbackup_domain.
METRIC = re.compile(r"\bvbackup_\w+\b")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration with one job, whose only domain was backed up three days ago, a target, and no runs."""
    repository = Repository.create(tmp_path / "repo")
    then = datetime.now(timezone.utc) - timedelta(days=3)
    commit(repository, backup(1, id=names.backup_id(then, Level.FULL), time=then))
    monkeypatch.setenv("VBACKUP_STATE", str(tmp_path / "state"))
    path = tmp_path / "vbackup.toml"
    path.write_text(
        f'[repository.main]\npath = "{repository.path}"\n[job.nightly]\nrepository = "main"\nat = ["01:00"]\n'
    )
    path.chmod(0o600)
    return path


def exposition(site: Path, capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    capfd.readouterr()
    assert main(["metrics", "--config", str(site), "--offline", *arguments]) == 0
    return capfd.readouterr().out


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free: int = probe.getsockname()[1]
        return free


def fetched(url: str, *, until: Callable[[bytes], bool] = bool) -> bytes:
    """What is there, as soon as it is."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                body: bytes = answer.read()
            if until(body):
                return body
        except urllib.error.HTTPError as err:
            body = err.read()
            # Prometheus answers so from the moment it listens until it has read its own files.
            if err.code != http.HTTPStatus.SERVICE_UNAVAILABLE:
                raise AssertionError(body.decode()) from err
        except OSError:
            body = b""
        assert time.monotonic() < deadline, f"{url} did not answer: {body!r}"
        time.sleep(0.05)


def test_promtool_has_no_complaint(site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    promtool = program("usr/bin/promtool")
    text = exposition(site, capfd)
    assert "vbackup_domain_overdue" in text
    # It prints what it would name differently.
    assert run([promtool, "check", "metrics"], stdin=text.encode()) == ""


def test_rules_are_valid_and_fire_as_their_tests_say() -> None:
    promtool = program("usr/bin/promtool")
    assert "SUCCESS" in run([promtool, "check", "rules", RULES])
    assert "SUCCESS" in run([promtool, "test", "rules", RULES.with_name("vbackup.rules.test.yml")])


def test_every_alert_has_a_test_and_names_metrics_that_exist() -> None:
    rules, tests = RULES.read_text(), RULES.with_name("vbackup.rules.test.yml").read_text()
    alerts = re.findall(r"- alert: (\w+)", rules)
    assert len(alerts) >= 10
    for alert in alerts:
        assert re.search(rf"alertname: {alert}\n\s+exp_alerts", tests), alert
    expressions = re.sub(r"(?m)^\s*(summary|description):.*|#.*", "", rules)
    assert set(METRIC.findall(expressions)) <= METRICS.keys()


def test_the_dashboard_shows_all_metrics_and_no_others() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert set(METRIC.findall(" ".join(expressions(dashboard)))) == METRICS.keys()
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    (variable,) = (one for one in dashboard["templating"]["list"] if one["name"] == "instance")
    assert METRIC.findall(variable["definition"])[0] in METRICS


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def test_a_real_prometheus_gets_all_from_a_real_node_exporter(
    site: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The text file becomes series, the dashboard's queries find them, and the alert fires that has to."""
    exporter, prometheus = program("usr/bin/prometheus-node-exporter"), program("usr/bin/prometheus")
    textfiles = tmp_path / "textfiles"
    textfiles.mkdir()
    exposition(site, capfd, "--output", str(textfiles / "vbackup.prom"))
    assert stat.S_IMODE((textfiles / "vbackup.prom").stat().st_mode) == 0o644
    of_exporter, of_prometheus = f"127.0.0.1:{port()}", f"127.0.0.1:{port()}"
    rules = tmp_path / "rules.yml"
    rules.write_text(re.sub(r"(?m)^\s+for: .*\n", "", RULES.read_text()))  # at once
    config = tmp_path / "prometheus.yml"
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(rules)],
                "scrape_configs": [{"job_name": "node", "static_configs": [{"targets": [of_exporter]}]}],
            }
        )
    )
    options = ["--collector.disable-defaults", "--collector.textfile", f"--collector.textfile.directory={textfiles}"]
    argv = [
        *(prometheus, f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"),
        f"--web.listen-address={of_prometheus}",
    ]
    with (
        running([exporter, *options, f"--web.listen-address={of_exporter}"], tmp_path / "exporter.log"),
        running(argv, tmp_path / "prometheus.log"),
    ):
        body = fetched(f"http://{of_exporter}/metrics", until=lambda text: b"vbackup_health" in text).decode()
        assert "node_textfile_scrape_error 0" in body
        url = f"http://{of_prometheus}/api/v1"
        fetched(f"{url}/query?query=vbackup_health", until=lambda text: b'"instance"' in text)
        for expression in expressions(json.loads(DASHBOARD.read_text())):
            query = urllib.parse.urlencode({"query": expression.replace("$instance", ".*")})
            answer = json.loads(fetched(f"{url}/query?{query}"))
            assert answer["status"] == "success", expression
            unknown = ("verify", "last_run", "last_success", "copy", "growth", "full_timestamp")
            if not any(word in expression for word in unknown):
                assert answer["data"]["result"], expression
        alerts = fetched(f"{url}/alerts", until=lambda text: b"VbackupDomainOverdue" in text)
        (overdue,) = (
            one for one in json.loads(alerts)["data"]["alerts"] if one["labels"]["alertname"] == "VbackupDomainOverdue"
        )
        assert overdue["labels"]["domain"] == "web"
        assert overdue["labels"]["backup_job"] == "nightly"


@pytest.fixture
def check(tmp_path: Path, site: Path) -> Path:
    """What the examples run with sudo: this vbackup, with the configuration of the test."""
    path = tmp_path / "vbackup"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -m vbackup "$@" --config {site} --offline\n')
    path.chmod(0o755)
    return path


def example(name: str, check: Path) -> str:
    return (INTEGRATIONS / "monitoring" / name).read_text().replace("/usr/bin/sudo -n /usr/bin/vbackup", str(check))


def test_nagios_accepts_the_example(tmp_path: Path, check: Path) -> None:
    nagios = program("usr/sbin/nagios4")
    objects = tmp_path / "vbackup.cfg"
    objects.write_text(example("nagios.cfg", check))
    others = tmp_path / "others.cfg"
    everyday = "\n".join(f"{day} 00:00-24:00" for day in ("sunday", "monday"))
    others.write_text(
        f"define timeperiod {{\ntimeperiod_name 24x7\nalias always\n{everyday}\n}}\n"
        "define command {\ncommand_name nothing\ncommand_line /bin/true\n}\n"
        "define contact {\ncontact_name nagiosadmin\nhost_notification_period 24x7\nservice_notification_period 24x7\n"
        "host_notification_commands nothing\nservice_notification_commands nothing\n}\n"
        "define host {\nhost_name localhost\naddress 127.0.0.1\nmax_check_attempts 1\ncontacts nagiosadmin\n"
        "check_command nothing\ncheck_period 24x7\nnotification_period 24x7\n}\n"
    )
    config = tmp_path / "nagios.cfg"
    config.write_text(
        f"log_file={tmp_path}/log\ncfg_file={others}\ncfg_file={objects}\ncheck_result_path={tmp_path}\n"
        f"object_cache_file={tmp_path}/cache\nstatus_file={tmp_path}/status\ntemp_path={tmp_path}\n"
        f"nagios_user={os.getuid()}\nnagios_group={os.getgid()}\nlock_file={tmp_path}/lock\ncommand_file={tmp_path}/cmd\n"
    )
    assert re.search(r"Total Errors:\s+0", run([nagios, "-v", config]))
    (command,) = re.findall(r"command_line\s+(.*)", objects.read_text())
    assert "VBACKUP CRITICAL - 0 of 1 domains backed up" in run(["sh", "-c", f"{command} || test $? = 2"])


def test_icinga_accepts_the_example(tmp_path: Path, check: Path) -> None:
    icinga = program("usr/lib/x86_64-linux-gnu/icinga2/sbin/icinga2")
    config, data = tmp_path / "icinga2.conf", tmp_path / "data"
    data.mkdir()
    include = MONITORS / "usr/share/icinga2/include"
    variables = 'vars.vbackup = true\n  vars.vbackup_jobs = [ "nightly" ]'
    host = f'object Host "hv1" {{\n  check_command = "dummy"\n  {variables}\n}}\n'
    config.write_text(f'include "{include}/itl"\n{example("icinga2.conf", check)}{host}')
    places = [f"--define={name}={data}" for name in ("DataDir", "CacheDir", "LogDir", "InitRunDir", "SpoolDir")]
    # It starts itself again, and then needs its libraries.
    assert LIBRARIES.is_dir()
    text = run([icinga, "daemon", "-C", "-c", config, *places, "--define=RunAsUser=root", "--define=RunAsGroup=root"])
    assert "Instantiated 1 Service." in text
    assert "Instantiated 1 Host." in text


def test_sudo_allows_the_command_lines_of_the_examples_and_nothing_else() -> None:
    """A wildcard would let an agent choose a URI, with which libvirt runs what it names."""
    texts = {path.name: path.read_text() for path in (INTEGRATIONS / "monitoring").iterdir()}
    (line,) = re.findall(r"(?m)^    nagios, zabbix ALL=\(root\) NOPASSWD: (.*)$", texts["README.md"])
    allowed = line.split(", ")
    assert not [one for one in allowed if re.search(r"[*?\[\]]", one)]
    run_by_them = re.findall(r"(?m)^[^#\n]*/usr/bin/sudo -n (/usr/bin/vbackup [^;\n]*)", "\n".join(texts.values()))
    assert set(run_by_them) == set(allowed)


@pytest.mark.parametrize("key", ["vbackup.line", "vbackup.json"])
def test_zabbix_gets_the_value_of_the_example(tmp_path: Path, check: Path, key: str) -> None:
    agent = program("usr/sbin/zabbix_agentd")
    config = tmp_path / "zabbix.conf"
    config.write_text("LogType=console\nServer=127.0.0.1\nHostname=hv1\n" + example("zabbix.conf", check))
    _, _, value = run([agent, "-c", config, "-t", key]).partition("[t|")
    if key == "vbackup.line":
        assert value.startswith("VBACKUP CRITICAL - 0 of 1 domains backed up")
    else:
        document = json.loads(value.rpartition("]")[0])
        assert document["schema"] == "vbackup.status/1"
        paths = (INTEGRATIONS / "monitoring" / "zabbix.conf").read_text()
        assert "$.repositories[0].free_bytes" in paths
        assert document["repositories"][0]["free_bytes"] > 0
        assert document["domains"][0]["name"] == "web"


def test_the_line_of_checkmk_is_one_that_its_agent_can_run(check: Path) -> None:
    lines = [
        line for line in (INTEGRATIONS / "monitoring" / "mrpe.cfg").read_text().splitlines() if not line.startswith("#")
    ]
    (match,) = (re.fullmatch(r"(\S+) \(interval=\d+\) (/usr/bin/vbackup .*)", line) for line in lines)
    assert match is not None
    argv = match[2].replace("/usr/bin/vbackup", str(check))
    assert run(["sh", "-c", f"{argv}; test $? = 2"]).startswith("VBACKUP CRITICAL - ")


def test_what_is_not_unpacked_is_skipped_and_not_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.monitors.MONITORS", Path("/nowhere"))
    with pytest.raises(pytest.skip.Exception):
        program("usr/bin/promtool")
    assert shutil.which("sh")


def repository_of(path: Path, *, domains: int, points: int) -> Repository:
    """A repository of chains of one full; only what a look at it reads is as it would be."""
    repository, now = Repository.create(path), datetime.now(timezone.utc)
    times = [now - timedelta(days=points - 1 - number) for number in range(points)]
    chain: list[Backup] = []
    for number, then in enumerate(times):
        level = Level.INCREMENTAL if chain else Level.FULL
        base = chain[-1].id if chain else None
        blocks = BlocksRecord("blake3:" + "1" * 64, "blake3:" + "2" * 64, data_blocks=100, zero_blocks=3)
        change = ChangeRecord(6553600, 65536, 65536, 30000)
        disk = image(level=level, base=base, digest=None, blocks=blocks, change=change)
        chain.append(backup(number + 1, disk, level=level, id=names.backup_id(then, level), time=then))
    texts = [manifest.dump(one) for one in chain]
    for number in range(domains):
        uuid = f"f0000000-0000-4000-8000-{number:012d}"
        directory = repository.path / uuid
        directory.mkdir()
        (directory / "domain.json").write_text(json.dumps({"names": [f"guest{number}"]}))
        for one, text in zip(chain, texts):
            (directory / one.id).mkdir()
            with (directory / one.id / "vda.qcow2").open("wb") as file:
                file.truncate(one.disks[0].file_size_bytes)
            (directory / one.id / "manifest.json").write_text(text.replace(UUID, uuid))
        newest = replace(chain[-1], domain_uuid=uuid)
        (directory / newest.id / "manifest.json").write_text(manifest.dump(newest))
    return repository


def test_status_of_200_domains_of_60_points_takes_under_a_second(tmp_path: Path) -> None:
    """Of processor time: what else this machine does is no matter."""
    repository = repository_of(tmp_path / "repo", domains=200, points=60)
    argv = [sys.executable, "-m", "vbackup", "status", "-r", repository.path, "--max-age", "26h", "--offline"]
    before = os.times()
    text = run(argv)
    after = os.times()
    taken_s = after.children_user + after.children_system - before.children_user - before.children_system
    assert text.startswith("Everything is backed up: 200 domains, the oldest ")
    assert taken_s < 1
