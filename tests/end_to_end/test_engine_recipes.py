"""What vbackup-engines(7) shows works: its scripts and commands are run as they are printed there."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from docutils import nodes
from docutils.core import publish_doctree

from tests.bacula import ENGINES
from tests.conftest import Command
from tests.daemon import Daemon
from tests.lab import DiskSpec, Machine, compare, domain_xml

PAGE = Path(__file__).resolve().parents[2] / "man" / "vbackup-engines.7.rst"
RESTIC = ENGINES / "usr/bin/restic"

#: vbackup, with a stage that is the test's; on request, a stream ends early.
PROGRAM = """\
#!/bin/sh
export PYTHONPATH={top}
case "$1 $2" in
    "stream backup" | "stream commit" | "stream abort") set -- "$@" --stage {directory}/stage ;;
esac
case "$CUT$2" in yesbackup) {python} -m vbackup "$@" | head -c 100000; exit 7 ;; esac
exec {python} -m vbackup "$@"
"""


def examples(beginning: str) -> list[str]:
    """The literal blocks that begin so."""
    document: nodes.document = publish_doctree(PAGE.read_text(), settings_overrides={"report_level": 2})
    return [
        block
        for block in (one.astext() for one in document.findall(nodes.literal_block))
        if block.startswith(beginning)
    ]


class Site:
    """A domain, and a directory with programs that scripts find first."""

    def __init__(self, daemon: Daemon, machine: Machine, directory: Path) -> None:
        self.machine, self.directory = machine, directory
        self.bin = directory / "bin"
        self.bin.mkdir()
        program = PROGRAM.format(directory=directory, top=PAGE.parents[1], python=sys.executable)
        self.program("vbackup", program)
        self.environment = {
            **os.environ,
            "PATH": f"{self.bin}:{RESTIC.parent}:{os.environ['PATH']}",
            "LIBVIRT_DEFAULT_URI": daemon.uri,
            "RESTIC_REPOSITORY": str(directory / "restic"),
            "RESTIC_PASSWORD": "secret",
            "XDG_CACHE_HOME": str(directory / "cache"),
        }

    def program(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def run(self, *argv: str | Path, status: int = 0, **environment: str) -> str:
        done = subprocess.run(
            [*map(str, argv)],
            env={**self.environment, **environment},
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == status, done
        return done.stdout + done.stderr

    def write(self, what: str) -> Path:
        """The guest writes; returns what the disk holds then."""
        self.machine.write("vda", what, "flush")
        expected = self.directory / f"expected{len([*self.directory.glob('expected*')])}.raw"
        image = self.directory / "vda.qcow2"
        argv = ["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", image, expected]
        subprocess.run(argv, check=True)
        return expected


@pytest.fixture
def site(daemon: Daemon, images: Path) -> Site:
    spec = DiskSpec(images / "vda.qcow2", size="8M")
    spec.create()
    return Site(daemon, daemon.start(domain_xml("web", [spec.xml()])), images)


def test_stream_to_another_host(site: Site) -> None:
    [example] = examples("vbackup stream backup web")
    forth, back = example.splitlines()
    # The other host is this one.
    site.program("ssh", '#!/bin/sh\nshift\nexec sh -c "$1"\n')
    site.write("write -P 1 0 1M")
    site.run("sh", "-c", forth)
    expected = site.write("write -P 2 1M 64k")
    site.run("sh", "-c", forth.replace("web-1", "web-2").replace("--job 1", "--job 2"))
    site.run("sh", "-c", back.replace("/srv/restored", str(site.directory)))
    compare(site.directory / "web" / "vda.qcow2", expected)
    [listing] = examples("tar -tvf")
    assert site.run("sh", "-c", listing).count("web") == 0
    assert "SHA256SUMS" in site.run("sh", "-c", listing)


@pytest.mark.long
@pytest.mark.skipif(not RESTIC.exists(), reason="'make check-engines' unpacks restic")
def test_restic_keeps_a_chain(site: Site, command: Command) -> None:
    there, back = (site.program(f"restic-{number}", text) for number, text in enumerate(examples("#!/bin/bash")))
    site.run("restic", "init")
    expected = [site.write("write -P 1 0 2M")]
    site.run(there, "web", "full")
    expected.append(site.write("write -P 2 1M 64k"))
    site.run(there, "web")
    site.write("write -P 3 3M 1M")
    site.run(there, "web", status=1, CUT="yes")  # restic keeps what it got
    site.run(there, "web", status=1, RESTIC_PASSWORD="wrong")
    expected.append(site.write("write -P 4 4M 64k"))
    site.run(there, "web")
    snapshots = json.loads(site.run("restic", "snapshots", "--json"))
    assert ["complete" in one["tags"] for one in snapshots] == [True, True, False, True]
    repository = site.directory / "repository"
    command("init", "-r", repository)
    site.run(back, "web", repository)
    listed = command("list", "web", "-r", repository, "--json").document["backups"]
    assert [one["level"] for one in listed] == ["full", "incremental", "incremental"]
    for one, raw in zip(listed, expected):
        command("-q", "restore", "web", "-r", repository, "--backup", one["id"], "--output", site.directory / one["id"])
        compare(site.directory / one["id"] / "vda.qcow2", raw)


#: Debian's Amanda expects its files where the package has them: they lie over the system's, for one process.
AMANDA = """\
set -e
# With loopback addresses alone, the C library does not look up "localhost" (AI_ADDRCONFIG).
ip address add 192.0.2.1/32 dev lo
ip link set lo up
mount -t overlay overlay -o lowerdir={engines}/usr:/usr /usr
mount -t overlay overlay -o lowerdir={engines}/etc:/etc /etc
mount --bind {directory}/etc /etc/amanda
mount --bind {directory}/hosts /etc/hosts
mount --bind {directory}/amanda /var/log
mount --bind {directory}/amanda /var/lib
cd {directory}
exec setpriv --reuid backup --regid backup --init-groups sh -c "$1"
"""

AMANDA_CONF = """\
org "vbackup"
dumpuser "backup"
mailto ""
infofile "{directory}/amanda/curinfo"
logdir "{directory}/amanda/log"
indexdir "{directory}/amanda/index"
tpchanger "chg-disk:{directory}/amanda/vtapes"
tapetype VT
define tapetype VT {{
    length 10 gbytes
}}
autolabel "vb-%%%" empty volume_error
labelstr "^vb-[0-9]*$"
dumpcycle 10 days
"""


@pytest.mark.long
@pytest.mark.skipif(not (ENGINES / "usr/sbin/amdump").exists(), reason="'make check-engines' unpacks Amanda")
def test_amanda_saves_the_repository(site: Site, command: Command, daemon: Daemon) -> None:
    directory, repository = site.directory, site.directory / "repository"
    command("init", "-r", repository)
    (directory / "etc/vb").mkdir(parents=True)
    for name in ("lib/gnutar-lists", "log", *(f"vtapes/slot{number}" for number in (1, 2))):
        (directory / "amanda" / name.replace("lib/", "amanda/")).mkdir(parents=True)
    (directory / "amanda/amanda/amandates").touch()
    [applications] = examples("define application")
    conf = AMANDA_CONF.format(directory=directory) + applications + "\n"
    (directory / "etc/vb/amanda.conf").write_text(conf)
    [disklist] = examples("localhost /backup")
    (directory / "etc/vb/disklist").write_text(disklist.replace("/backup", str(repository)) + "\n")
    # There is no network, so no name is found elsewhere.
    (directory / "hosts").write_text(f"127.0.0.1 localhost {socket.gethostname()}\n")
    for path in [directory, *(directory / "amanda").rglob("*"), *(directory / "etc").rglob("*"), directory / "amanda"]:
        shutil.chown(path, "backup", "backup")
    script = AMANDA.format(engines=ENGINES, directory=directory)

    def amanda(what: str) -> str:
        return site.run("unshare", "-m", "-n", "sh", "-c", script, "sh", what)

    expected = []
    for write in ("write -P 1 0 2M", "write -P 2 1M 64k"):
        expected.append(site.write(write))
        command("-c", daemon.uri, "-q", "backup", "web", "-r", repository)
        amanda("amdump vb")
    found = amanda(f"amadmin vb find localhost {repository}")
    dumps = sorted(line.split()[:5] for line in found.splitlines() if "localhost" in line)
    assert [dump[4] for dump in dumps] == ["0", "1"], found
    [fetch] = examples("amfetchdump")
    restored = directory / "restored"
    restored.mkdir()
    for dump in dumps:
        date = "".join(character for character in "".join(dump[:2]) if character.isdigit())
        forth, back = fetch.replace("CONFIG", "vb").replace("/backup", str(repository)).split(" | ")
        amanda(f"{forth.replace('DATE', date)} > {directory}/amanda/{date}")
        site.run("sh", "-c", f"{back.replace('/srv/restored', str(restored))} < {directory}/amanda/{date}")
    backups = command("list", "web", "-r", restored, "--json").document["backups"]
    assert [one["level"] for one in backups] == ["full", "incremental"]
    for one, raw in zip(backups, expected):
        command("-q", "restore", "web", "-r", restored, "--backup", one["id"], "--output", directory / one["id"])
        compare(directory / one["id"] / "vda.qcow2", raw)


@pytest.mark.parametrize("example", examples("vbackup engine config"))
def test_configuration_is_printed(command: Command, example: str) -> None:
    said = command(*shlex.split(example)[1:], "--program", "/usr/local/bin/vbackup").stdout
    assert "Name = vbackup-web\n" in said


@pytest.mark.parametrize("ci", ["", "true"])
def test_ci_does_not_pass_without_the_directors(tmp_path: Path, ci: str) -> None:
    """Tests that are skipped cannot fail."""
    apt_get = tmp_path / "apt-get"
    apt_get.write_text("#!/bin/sh\necho 'Temporary failure resolving'\nexit 100\n")
    apt_get.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "CI": ci}
    script = PAGE.parents[1] / ".ci" / "unpack-packages"
    argv = [script, tmp_path / "engines", "engine-packages"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=60)
    is_theirs = "VERSION_CODENAME=bookworm\n" in Path("/etc/os-release").read_text()
    assert (done.returncode != 0) == (ci == "true" and is_theirs)
    assert "Temporary failure resolving" in done.stderr
    assert not (tmp_path / "engines").exists()


def test_configuration_is_there_for_both_directors() -> None:
    assert [example.split()[4] for example in examples("vbackup engine config")] == ["bacula", "bareos"]
