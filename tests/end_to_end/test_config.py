"""From what a real libvirt has to a configuration that backs it up, and what the check says when something goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab import DiskSpec, domain_xml
from vbackup.api import read_config
from vbackup.config.arguments import argv

if TYPE_CHECKING:
    from tests.conftest import Command
    from tests.lab import Lab


def test_first_configuration_of_a_host(lab: Lab, command: Command, repository: Path, tmp_path: Path) -> None:
    running, off = DiskSpec(tmp_path / "web.qcow2", size="8M"), DiskSpec(tmp_path / "db.qcow2", size="16M")
    lab.boot("web", [running])
    off.create()
    lab.define(domain_xml("db", [off.xml()]))
    file = tmp_path / "etc" / "vbackup.toml"
    command("config", "init", "-c", lab.uri, "-r", repository, "--output", file)
    text = file.read_text()
    assert "#   db   shut off  1 disk, 16.0 MiB\n" in text
    assert "#   web  running   1 disk, 8.0 MiB\n" in text
    assert "# The disks below have 24.0 MiB" in text

    checked = command("config", "check", "--config", file, "--json").document
    assert checked["valid"] is True
    assert {one["name"] for one in checked["jobs"][0]["domains"]} == {"web", "db"}

    # What the configuration says is what the commands take.
    job = read_config(file).jobs["nightly"]
    words = argv("backup", job.options["backup"])
    made = command(*words, "--all", "-c", job.connect[0], "-r", repository, "--json").document
    assert made["done"] == 2
    command(*argv("prune", job.options["prune"]), "--all", "-r", repository)
    command(*argv("verify", job.options["verify"]), "--all", "-r", repository)
    command(*argv("audit", job.options["audit"]), "web", "-c", job.connect[0], "-r", repository)

    # A domain that only the configuration has, and a repository that is not mounted.
    file.write_text(text.replace("at = [", 'domains = ["web", "mail", "x*"]\nat = ['))
    repository.rename(tmp_path / "elsewhere")
    refused = command("config", "check", "--config", file, "--json", status=2)
    faults = {one["line"]: one["message"] for one in json.loads(refused.stdout)["faults"]}
    lines = file.read_text().split("\n")
    by_key = {lines[number - 1].partition(" ")[0]: message for number, message in faults.items()}
    assert by_key.keys() == {"path", "domains"}
    assert "is not a vbackup repository; is the disk mounted?" in by_key["path"]
    assert "Job nightly: libvirt has no domain 'mail'." in refused.stdout
    assert "Job nightly: 'x*' matches no domain." in refused.stdout
    assert any("No job backs up domain db" in one["message"] for one in json.loads(refused.stdout)["warnings"])


def test_libvirt_that_cannot_be_reached_has_the_line_of_the_job(
    command: Command, repository: Path, tmp_path: Path
) -> None:
    file = tmp_path / "x.toml"
    file.write_text(
        f"[repository.main]\npath = '{repository}'\n[job.a]\nnotify = []\n"
        f"connect = 'qemu+unix:///system?socket={tmp_path}/none'\n"
    )
    done = command("config", "check", "--config", file, status=2)
    assert f"{file}:5: Job a: Cannot reach libvirt at qemu+unix:///system" in done.stdout
