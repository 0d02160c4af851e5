"""The Ansible collection, built and installed as its users do: the role, the modules, the examples, here and by ssh.

Each playbook takes seconds to start, so a story is one playbook, and asserts what it registered.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import vbackup
from tests.daemon import wait_for
from tests.end_to_end.test_offline import write
from tests.lab import DiskSpec, compare, domain_xml
from vbackup.scripts import finding

if TYPE_CHECKING:
    from tests.conftest import Command
    from tests.daemon import Daemon

TOP = Path(__file__).resolve().parents[2]
COLLECTION = TOP / "integrations" / "ansible"
MODULES = ("vbackup_backup", "vbackup_restore", "vbackup_info")

pytestmark = [
    pytest.mark.skipif(shutil.which("ansible-playbook") is None, reason="ansible-core is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="the role gives files to root"),
]


@dataclass(frozen=True)
class Ansible:
    """ansible-core with the collection, and all of its files in one directory."""

    directory: Path
    inventory: str = "localhost,"  #: the hosts, or the file that has them
    host: Mapping[str, Any] = field(default_factory=lambda: {"hosts": "localhost", "connection": "local"})

    @property
    def results(self) -> Path:
        """What tests/ansible/results.py writes."""
        return self.directory / "results"

    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH",)}
        return {
            **kept,
            "HOME": str(self.directory),
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_COLLECTIONS_PATH": str(self.directory),
            "ANSIBLE_LOCAL_TEMP": str(self.directory / "local"),
            "ANSIBLE_REMOTE_TEMP": str(self.directory / "remote"),
            "ANSIBLE_CALLBACK_PLUGINS": str(TOP / "tests" / "ansible"),
            "ANSIBLE_CALLBACKS_ENABLED": "results",
            "VBACKUP_TEST_RESULTS": str(self.results),
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_SSH_ARGS": "",  # no ControlPersist: its process stays for a minute
        }

    def run(self, *argv: str | Path, status: int | None = 0) -> str:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, env=self.environment(), cwd=self.directory, timeout=300
        )
        assert status is None or done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def play(
        self, tasks: list[dict[str, Any]], *options: str, status: int | None = 0, **members: Any
    ) -> dict[str, dict[str, Any]]:
        """Run a playbook on the host; the results of its tasks by name."""
        play = {**self.host, "gather_facts": False, "tasks": tasks, **members}
        path = self.directory / "play.yml"
        path.write_text(json.dumps([play]))  # which is YAML
        variables = ("-e", "ansible_python_interpreter=/usr/bin/python3")
        self.results.unlink(missing_ok=True)
        self.run("ansible-playbook", "-i", self.inventory, path, *variables, *options, status=status)
        return dict(map(json.loads, self.results.read_text().splitlines()))


@pytest.fixture(scope="module")
def ansible(tmp_path_factory: pytest.TempPathFactory) -> Ansible:
    """The collection as ``ansible-galaxy`` builds and installs it, without the network."""
    made = Ansible(tmp_path_factory.mktemp("ansible"))
    made.run("ansible-galaxy", "collection", "build", COLLECTION, "--output-path", made.directory)
    [archive] = made.directory.glob("vbackup-vbackup-*.tar.gz")
    made.run("ansible-galaxy", "collection", "install", archive, "-p", made.directory, "--offline")
    return made


@pytest.fixture(scope="module")
def executable(ansible: Ansible) -> Path:
    """This vbackup, for another process."""
    path = ansible.directory / "vbackup"
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{TOP}" exec "{sys.executable}" -m vbackup "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def remote(ansible: Ansible) -> Iterator[Ansible]:
    """The same by ssh: an sshd of the tests on loopback, with keys that are in nobody's home directory."""
    if shutil.which("sshd", path=SBIN) is None:
        pytest.skip("openssh-server is not installed")
    directory = ansible.directory / "ssh"
    directory.mkdir(mode=0o700)
    for name in ("id", "host"):
        ansible.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = directory / "sshd_config"
    config.write_text(SSHD_CONFIG.format(directory=directory, port=port))
    known = directory / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {(directory / 'host.pub').read_text()}")
    inventory = directory / "hosts"
    words = f"-F none -o IdentitiesOnly=yes -o UserKnownHostsFile={known} -o StrictHostKeyChecking=yes"
    inventory.write_text(
        f"node ansible_host=127.0.0.1 ansible_port={port} ansible_user=root"
        f" ansible_ssh_private_key_file={directory / 'id'} ansible_ssh_common_args='{words}'\n"
    )
    separation = Path("/run/sshd")  # which the service makes where it is started
    is_new = not separation.exists()
    separation.mkdir(mode=0o755, exist_ok=True)
    try:
        with (directory / "log").open("w") as log:
            sshd = subprocess.Popen([shutil.which("sshd", path=SBIN) or "", "-D", "-e", "-f", config], stderr=log)
        try:
            wait_for(lambda: greets(port) or sshd.poll() is not None, "the start of sshd")
            assert sshd.poll() is None, (directory / "log").read_text()
            yield replace(ansible, inventory=str(inventory), host={"hosts": "node"})
        finally:
            sshd.terminate()
            sshd.wait(10)
    finally:
        if is_new:
            separation.rmdir()


SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
#: No PAM: the accounts of a container often have no password, and PAM may refuse them.
SSHD_CONFIG = """\
ListenAddress 127.0.0.1:{port}
HostKey {directory}/host
AuthorizedKeysFile {directory}/id.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
"""


def greets(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        return client.recv(4) == b"SSH-"
    return False


# documentation


def test_documentation_is_complete(ansible: Ansible) -> None:
    names = [f"vbackup.vbackup.{name}" for name in MODULES]
    documents = json.loads(ansible.run("ansible-doc", "--json", *names))
    for name in names:
        doc = documents[name]["doc"]
        assert {"repository", "connection", "executable"} <= doc["options"].keys()
        assert documents[name]["examples"].strip()
        assert {"error", "rc"} <= documents[name]["return"].keys()
        assert all(one["description"] for one in doc["options"].values())
    roles = json.loads(ansible.run("ansible-doc", "--json", "-t", "role", "vbackup.vbackup.host"))
    options = roles["vbackup.vbackup.host"]["entry_points"]["main"]["options"]
    defaults = (COLLECTION / "roles" / "host" / "defaults" / "main.yml").read_text()
    assert {line.split(":")[0] for line in defaults.splitlines() if line.startswith("vbackup_")} == options.keys()


#: Prints the argument specification of each module, by its name.
SPECIFICATIONS = """
import importlib, json, sys

class Given(Exception):
    pass

def given(argument_spec, **_more):
    raise Given(argument_spec)

sys.path.insert(0, sys.argv[1])
found = {}
for name in sys.argv[2:]:
    module = importlib.import_module(f"ansible_collections.vbackup.vbackup.plugins.modules.{name}")
    module.AnsibleModule = given
    try:
        module.main()
    except Given as spec:
        found[name] = spec.args[0]
print(json.dumps(found))
"""


def test_documented_options_are_those_of_the_modules(ansible: Ansible) -> None:
    specs = json.loads(ansible.run("/usr/bin/python3", "-c", SPECIFICATIONS, ansible.directory, *MODULES))
    documents = json.loads(ansible.run("ansible-doc", "--json", *(f"vbackup.vbackup.{name}" for name in MODULES)))
    members = ("type", "required", "default", "choices", "elements")
    for name in MODULES:
        options = documents[f"vbackup.vbackup.{name}"]["doc"]["options"]
        told = {one: {member: option.get(member) for member in members} for one, option in options.items()}
        spec = {one: {member: option.get(member) for member in members} for one, option in specs[name].items()}
        for found in (*told.values(), *spec.values()):
            found["required"] = bool(found["required"])
        assert told == spec


# the role


@pytest.fixture
def sources(tmp_path: Path, executable: Path) -> Path:
    """What the role needs of a source tree; test_install.py has the real ``make install``."""
    path = tmp_path / "sources"
    (path / "vbackup").mkdir(parents=True)
    (path / "vbackup" / "__init__.py").write_text(f'"""vbackup."""\n__version__ = "{vbackup.__version__}"\n')
    (path / "Makefile").write_text(f"install:\n\tinstall -D $(MODE) {executable} $(PREFIX)/bin/vbackup\n")
    return path


ROLE = [{"name": "role", "ansible.builtin.include_role": {"name": "vbackup.vbackup.host"}}]


@pytest.fixture
def variables(sources: Path, tmp_path: Path) -> dict[str, Any]:
    """What the role needs to change nothing outside of the test's directory."""
    (tmp_path / "root" / "etc" / "libvirt").mkdir(parents=True)
    return {
        "vbackup_source": str(sources),
        "vbackup_prefix": str(tmp_path / "prefix"),
        "vbackup_make_variables": ["MODE=-m755"],
        "vbackup_repository": str(tmp_path / "repository"),
        "vbackup_scripts_directory": str(tmp_path / "scripts.d"),
        "vbackup_scripts": [{"phase": "pre-backup", "name": "10-x", "content": "#!/bin/sh\nexit 0\n"}],
        "vbackup_hooks_root": str(tmp_path / "root"),
    }


@pytest.mark.long
def test_role_installs_once(ansible: Ansible, variables: dict[str, Any], tmp_path: Path) -> None:
    variables["vbackup_scripts"] = [
        {"phase": "on-failure", "name": "50-mail", "link": str(TOP / "hooks" / "examples" / "mail")},
        {"phase": "pre-backup", "name": "10-x", "domain": "web", "content": "#!/bin/sh\nexit 0\n"},
    ]
    # Before anything is there: neither the command nor its examples, to which a script may be a link.
    link = {"phase": "on-failure", "name": "50-mail", "link": str(tmp_path / "prefix" / "share" / "mail")}
    planned = ansible.play(ROLE, "--check", vars={**variables, "vbackup_scripts": [link]})
    assert planned["vbackup.vbackup.host : Link the script"]["changed"]
    assert not [path for path in ("prefix", "repository", "scripts.d") if (tmp_path / path).exists()]
    first = ansible.play(ROLE, vars=variables)
    assert first["vbackup.vbackup.host : Build and install the command"]["changed"]
    assert (tmp_path / "repository" / "vbackup.json").exists()
    assert (tmp_path / "scripts.d" / "on-failure.d" / "50-mail").resolve().is_file()
    script = tmp_path / "scripts.d" / "domains" / "web" / "pre-backup.d" / "10-x"
    assert (script.read_text(), script.stat().st_mode & 0o777) == ("#!/bin/sh\nexit 0\n", 0o755)
    assert (tmp_path / "root" / "etc" / "libvirt" / "hooks" / "qemu.d" / "50-vbackup").exists()
    assert finding.find(tmp_path / "scripts.d", ("web",), is_wanted=True).warnings == ()
    again = ansible.play(ROLE, vars=variables)
    assert {name for name, result in again.items() if result.get("changed")} == set()


@pytest.mark.long
def test_role_on_another_host_does_what_check_mode_has_said(
    remote: Ansible, variables: dict[str, Any], tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))

    def changed(*options: str) -> set[str]:
        return {name for name, result in remote.play(ROLE, *options, vars=variables).items() if result.get("changed")}

    planned = changed("--check")
    assert sorted(tmp_path.rglob("*")) == before, "check mode changes nothing"
    assert changed() == planned
    assert (tmp_path / "scripts.d" / "pre-backup.d" / "10-x").exists()
    assert changed("--check") == set()


# the modules


@pytest.fixture
def web(daemon: Daemon, images: Path) -> DiskSpec:
    """A domain web that is off, in a libvirtd; its disk."""
    spec = DiskSpec(images / "vda.qcow2", size="8M")
    spec.create()
    daemon.define(domain_xml("web", [spec.xml()]))
    write(spec.path, "write -P 1 0 2M")
    return spec


def task(module: str, name: str, *, check: bool = False, fails: bool = False, **options: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"name": name, f"vbackup.vbackup.vbackup_{module}": options}
    return {**made, "check_mode": check, "ignore_errors": fails}


def test_story_of_the_modules(
    ansible: Ansible, executable: Path, daemon: Daemon, web: DiskSpec, repository: Path, command: Command, images: Path
) -> None:
    defaults = {"repository": str(repository), "connection": daemon.uri, "executable": str(executable)}
    backup = {**defaults, "domain": "web"}
    one, other = str(images / "one"), str(images / "other")
    story = [
        task("info", "nothing there", **defaults),
        task("info", "domain not there", domain="web", **defaults),
        task("backup", "would be made", check=True, max_age="1h", **backup),
        task("backup", "first", max_age="1h", note="by Ansible", **backup),
        task("backup", "young enough", max_age="1h", **backup),
        task("backup", "young enough in check mode", check=True, max_age="1h", **backup),
        task("backup", "not young enough", max_age="0s", **backup),
        task("backup", "not of that disk", max_age="1h", disks=["vdz"], fails=True, **backup),
        task("backup", "no such age", max_age="soon", fails=True, **backup),
        task("backup", "no such domain", domain="nosuch", fails=True, **defaults),
        task("restore", "restore would be made", check=True, output=one, **backup),
        task("restore", "restored", output=one, **backup),
        task("restore", "restored already", output=one, **backup),
        task("restore", "the same", output=one, backup="{{ x.backup.id }}", **backup),
        task("restore", "another one", output=one, backup="{{ y.backup.id }}", fails=True, **backup),
        task("restore", "of other disks", output=one, disks=["vda"], fails=True, **backup),
        task("restore", "defined", output=one, define=True, fails=True, **backup),
        task("restore", "where something is", output=other, fails=True, **backup),
        task("restore", "neither", fails=True, **backup),
        task("restore", "in place", in_place=True, backup="{{ y.backup.id }}", **backup),
        task("restore", "in place in check mode", check=True, in_place=True, **backup),
        task("info", "all", **defaults),
    ]
    story[3]["register"], story[6]["register"] = "y", "x"
    change = {"name": "change", "ansible.builtin.command": f"qemu-io -f qcow2 -c 'write -P 2 1M 64k' {web.path}"}
    story.insert(6, change)
    Path(other).mkdir()
    (Path(other) / "domain.xml").touch()
    found = ansible.play(story)
    assert (found["nothing there"]["domains"], found["domain not there"]["backups"]) == ([], [])
    assert found["would be made"]["changed"]
    assert found["would be made"]["plan"]["schema"] == "vbackup.plan/1"
    first, second = found["first"]["backup"], found["not young enough"]["backup"]
    assert (first["schema"], first["level"], second["level"]) == ("vbackup.backup/1", "full", "incremental")
    for name in ("young enough", "young enough in check mode"):
        assert (found[name]["changed"], found[name]["backup"]["id"]) == (False, first["id"])
        assert 0 <= found[name]["age_s"] < 3600
    assert found["young enough"]["backup"]["note"] == "by Ansible"
    assert "vdz" in found["not of that disk"]["msg"]
    assert "'soon' is not a time" in found["no such age"]["msg"]
    refused = found["no such domain"]
    assert (refused["rc"], refused["error"]["error"]) == (4, "DomainNotFoundError")
    assert refused["msg"].startswith("No domain 'nosuch'")
    assert found["restore would be made"]["changed"]
    assert found["restored"]["changed"]
    assert found["restored"]["restore"]["id"] == second["id"]
    assert not found["restored already"]["changed"]
    assert not found["the same"]["changed"]
    assert f"has a restore of backup {second['id']}, but backup {first['id']} is wanted" in found["another one"]["msg"]
    assert 'with disks: [], but ["vda"] is wanted' in found["of other disks"]["msg"]
    assert "with define: false, but true is wanted" in found["defined"]["msg"]
    assert "has a domain.xml that this module has not restored" in found["where something is"]["msg"]
    assert found["neither"]["msg"] == "give output, or in_place: true, and not both"
    assert [found[name]["changed"] for name in ("in place", "in place in check mode")] == [True, True]
    assert found["in place"]["restore"]["schema"] == "vbackup.rollback/1"
    assert [one["id"] for one in found["all"]["backups"]] == [first["id"], second["id"]]
    command("-q", "restore", "web", "-r", repository, "--backup", first["id"], "--output", images / "by-hand")
    compare(web.path, images / "by-hand" / "vda.qcow2")
    command("-q", "restore", "web", "-r", repository, "--backup", second["id"], "--output", images / "newest")
    compare(Path(one) / "vda.qcow2", images / "newest" / "vda.qcow2")


def test_modules_on_another_host(
    remote: Ansible, executable: Path, daemon: Daemon, web: DiskSpec, repository: Path, images: Path
) -> None:
    backup = {
        "repository": str(repository),
        "connection": daemon.uri,
        "executable": str(executable),
        "domain": "web",
    }
    found = remote.play(
        [
            task("backup", "planned", check=True, **backup),
            task("backup", "made", max_age="1h", **backup),
            task("backup", "young enough", max_age="1h", **backup),
            task("restore", "restored", output=str(images / "one"), **backup),
            task("backup", "no such domain", fails=True, **{**backup, "domain": "nosuch"}),
            task("info", "all", **backup),
        ]
    )
    assert [found[name]["changed"] for name in ("planned", "made", "young enough", "restored")] == [
        *(True, True, False, True)
    ]
    assert [one["id"] for one in found["all"]["backups"]] == [found["made"]["backup"]["id"]]
    assert found["no such domain"]["rc"] == 4
    compare(web.path, images / "one" / "vda.qcow2")


def test_backup_from_the_future_is_not_young(ansible: Ansible, tmp_path: Path) -> None:
    """A clock was wrong for a while: for years, no backup would be made."""
    listed = [
        {
            "id": str(year),
            "level": "full",
            "time": f"{year}-11-23T10:15:00.000000Z",
            "states": [],
            "excluded": [],
            "disks": ["vda"],
        }
        for year in (2020, 2096)
    ]
    fake = tmp_path / "vbackup"
    fake.write_text(f"#!/bin/sh\n[ $1 = backup ] && echo '{{}}' || echo '{json.dumps({'backups': listed})}'\n")
    fake.chmod(0o755)
    options = {"repository": str(tmp_path), "executable": str(fake), "domain": "web", "level": "auto"}
    found = ansible.play([task("backup", "made", max_age="1h", **options)])["made"]
    assert found["changed"]
    assert found["age_s"] > 365 * 24 * 3600


def test_examples_of_the_modules(
    ansible: Ansible, executable: Path, daemon: Daemon, web: DiskSpec, repository: Path, images: Path
) -> None:
    documents = json.loads(ansible.run("ansible-doc", "--json", *(f"vbackup.vbackup.{name}" for name in MODULES)))
    text = "".join(documents[f"vbackup.vbackup.{name}"]["examples"] for name in MODULES)
    text = text.replace("/srv/backup", str(repository)).replace("/var/lib/libvirt/images", str(images))
    tasks = ansible.directory / "examples.yml"
    tasks.write_text(f"---\n{text}")
    names = [line.partition(": ")[2] for line in text.splitlines() if line.startswith("- name: ")]
    defaults = {
        f"vbackup.vbackup.{name}": {"connection": daemon.uri, "executable": str(executable)} for name in MODULES
    }
    found = ansible.play([{"name": "examples", "ansible.builtin.include_tasks": str(tasks)}], module_defaults=defaults)
    daemon.defined("web-copy")
    assert set(names) <= found.keys()
    assert [found[name]["changed"] for name in names] == [True, False, True, True, False, False]
    assert (images / "web-copy" / "vda.qcow2").exists()
