"""What vbackup-scripts(7) shows and what hooks/examples has is run as vbackup runs it."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from docutils import nodes
from docutils.core import publish_doctree

from tests.unit.builders import UUID, Recorder, backup
from vbackup.errors import BusyError, VbackupError, error_document
from vbackup.operations import documents
from vbackup.scripts import program
from vbackup.scripts.finding import ScriptPhase
from vbackup.scripts.runner import DomainScripts, Settings
from vbackup.stop import Stop

TOP = Path(__file__).resolve().parents[3]
EXAMPLES = TOP / "hooks" / "examples"
PAGE = TOP / "man" / "vbackup-scripts.7.rst"
ONE = backup(1)


@dataclass
class Around:
    """A directory with scripts, with fakes of programs of the system before all others."""

    directory: Path
    bin: Path
    recorder: Recorder = field(default_factory=Recorder)

    def link(self, name: str, phase: ScriptPhase) -> None:
        place = self.directory / phase.directory
        place.mkdir(mode=0o755, parents=True, exist_ok=True)
        (place / f"50-{name}").symlink_to(EXAMPLES / name)

    def fake(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def run(self, phase: ScriptPhase, document: dict[str, Any], *, timeout_s: float = 20, **facts: str) -> list[str]:
        """Run the scripts of a phase, and return what they have said."""
        settings = Settings(self.directory, timeout_s=timeout_s)
        made = DomainScripts(settings, reporter=self.recorder, stop=Stop(), work="backup", domain="web")
        made.of_domain("web", UUID, uri="qemu:///system")
        made.know(backup_id=ONE.id, level="full", **facts)
        try:
            if phase.value.startswith("pre"):
                made.before(phase, document)
            else:
                made.after(phase, document)
        except VbackupError as err:
            self.recorder.warning(str(err))
        said = [step.partition(": ")[2] for step in self.recorder.steps]
        self.recorder.steps.clear()
        return said


@pytest.fixture
def around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Around:
    directory, programs = tmp_path / "scripts.d", tmp_path / "bin"
    for made in (directory, programs):
        made.mkdir(mode=0o755)
    monkeypatch.setattr(program, "_PATH", f"{programs}:{program._PATH}")
    return Around(directory, programs)


# the page


def page_examples() -> dict[str, str]:
    """The scripts in the page, by the path below the directory that the sentence before each names."""
    document: nodes.document = publish_doctree(PAGE.read_text(), settings_overrides={"report_level": 2})
    found = {}
    for block in document.findall(nodes.literal_block):
        if block.astext().startswith("#!"):
            place = re.search(r"scripts\.d/(\S+)$", block.parent[block.parent.index(block) - 1].astext().rstrip(":"))
            assert place is not None, block
            found[place[1]] = block.astext()
    return found


SHOWN = page_examples()
#: What each of them says of a full of domain web, without warnings.
SAID = {
    "post-backup.d/50-log": [f"-t vbackup backed up web: {ONE.id}"],
    "pre-backup.d/10-power": [],
    "domains/archive/pre-backup.d/20-no-full-by-day": [],
    "post-backup.d/60-disks": [f"vda full {ONE.disks[0].copied_bytes} {ONE.disks[0].reason}"],
    "domains/web/pre-restore.d/50-off": ["-c qemu:///system destroy " + UUID],
}


def test_every_example_of_the_page_is_here() -> None:
    assert SHOWN.keys() == SAID.keys()


@pytest.mark.parametrize("rpath", SHOWN)
def test_example_of_the_page_works(around: Around, rpath: str) -> None:
    path = around.directory / rpath.replace("archive", "web")
    path.parent.mkdir(mode=0o755, parents=True)
    path.write_text(SHOWN[rpath] + "\n")
    path.chmod(0o755)
    for name in ("logger", "virsh"):
        around.fake(name, 'echo "$@"')
    around.fake("date", "echo 03")
    phase = ScriptPhase(path.parent.name.removesuffix(".d"))
    assert around.run(phase, documents.backup(ONE)) == SAID[rpath]
    assert around.recorder.warnings == []


def test_example_of_the_page_stops_a_full_by_day(around: Around) -> None:
    path = around.directory / "pre-backup.d" / "20-no-full-by-day"
    path.parent.mkdir(mode=0o755)
    path.write_text(SHOWN["domains/archive/pre-backup.d/20-no-full-by-day"] + "\n")
    path.chmod(0o755)
    around.fake("date", "echo 09")
    assert around.run(ScriptPhase.PRE_BACKUP, {}) == ["A full would take too long by day."]
    assert "No backup was made" in around.recorder.warnings[0]


# webhook


@dataclass
class Server:
    """A server of HTTP that keeps what is posted to it."""

    url: str
    status: int = 200
    got: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            made.got.append((self.path, dict(self.headers), body))
            self.send_response(made.status)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_words: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        made = Server(f"http://127.0.0.1:{listening.server_port}/hooks/3f6c1a")
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield made
        listening.shutdown()
        thread.join()


def configure(around: Around, text: str, *, mode: int = 0o600) -> None:
    path = around.directory / ".webhook"
    path.write_text(text)
    path.chmod(mode)


def test_webhook_gets_the_document(around: Around, server: Server) -> None:
    around.link("webhook", ScriptPhase.POST_BACKUP)
    around.link("webhook", ScriptPhase.ON_FAILURE)
    configure(around, f"{server.url}\nAuthorization: Bearer 9a4d\n")
    assert around.run(ScriptPhase.POST_BACKUP, documents.backup(ONE)) == ["The server answered 200."]
    around.run(ScriptPhase.ON_FAILURE, error_document(BusyError("Busy.")), status="8")
    (path, headers, good), (_path, _headers, bad) = server.got
    assert (path, headers["Authorization"], headers["Content-Type"]) == (
        "/hooks/3f6c1a",
        "Bearer 9a4d",
        "application/json",
    )
    assert (good["phase"], good["domain"], good["uuid"], good["backup"]) == ("post-backup", "web", UUID, ONE.id)
    assert (good["status"], good["document"]["schema"]) == (0, "vbackup.backup/1")
    assert (bad["status"], bad["document"]["message"]) == (8, "Busy.")
    assert around.recorder.warnings == []


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("{url}\n", 0o644, "others can read .webhook, which may have a secret: chmod 600"),
        ("file:///etc/passwd\n", 0o600, ".webhook has no URL that begins with https:// or http://"),
        ("", 0o600, ".webhook cannot be used: IndexError"),
        ("http://127.0.0.1/hooks/3f6c1a x\n", 0o600, ".webhook cannot be used: InvalidURL"),
        ("http://127.0.0.1:1/hooks/3f6c1a\n", 0o600, "the server cannot be reached: [Errno 111] Connection refused"),
    ],
)
def test_webhook_says_what_is_wrong_without_its_url(
    around: Around, server: Server, text: str, mode: int, said: str
) -> None:
    around.link("webhook", ScriptPhase.POST_BACKUP)
    configure(around, text.format(url=server.url), mode=mode)
    assert around.run(ScriptPhase.POST_BACKUP, {}) == [said]
    assert "3f6c1a" not in "".join(around.recorder.warnings)
    assert server.got == []


@pytest.mark.parametrize("status", [403, 302])
def test_webhook_that_is_refused_is_a_failure(around: Around, server: Server, status: int) -> None:
    """A redirection is not followed: the server that it names would get the token in the headers."""
    around.link("webhook", ScriptPhase.POST_BACKUP)
    configure(around, server.url)
    server.status = status
    assert around.run(ScriptPhase.POST_BACKUP, {}) == [f"the server answered {status}"]
    assert "ended with exit status 1" in around.recorder.warnings[0]


# mail


def test_mail_is_handed_to_sendmail(around: Around, tmp_path: Path) -> None:
    around.link("mail", ScriptPhase.ON_FAILURE)
    around.fake("sendmail", f'echo "$@" > {tmp_path}/argv; cat > {tmp_path}/mail')
    (around.directory / ".mail-to").write_text("ops@example.com\nnight@example.com\n")
    err = BusyError("Domain wéb is busy.")
    around.run(ScriptPhase.ON_FAILURE, error_document(err), status="8", domain="wéb\nBcc: all@example.com")
    assert around.recorder.warnings == []
    assert (tmp_path / "argv").read_text() == "-t -i\n"
    mail = message_from_bytes((tmp_path / "mail").read_bytes(), policy=policy.default)
    assert mail["To"] == "ops@example.com, night@example.com"
    assert mail["Bcc"] is None
    assert f"backup of wéb?Bcc: all@example.com on {os.uname().nodename} FAILED (status 8)" in mail["Subject"]
    content = mail.get_content()
    assert content.startswith("Domain wéb is busy.\n\n{")
    assert json.loads(content[content.index("{") :])["status"] == 8


def test_mail_goes_to_root_and_says_if_it_does_not(around: Around, tmp_path: Path) -> None:
    around.link("mail", ScriptPhase.POST_BACKUP)
    around.fake("sendmail", f"cat > {tmp_path}/mail; exit 75")
    around.run(ScriptPhase.POST_BACKUP, documents.backup(ONE))
    mail = message_from_bytes((tmp_path / "mail").read_bytes(), policy=policy.default)
    assert (mail["To"], mail["Subject"]) == ("root", f"vbackup: post-backup of web on {os.uname().nodename}")
    assert "ended with exit status 75" in around.recorder.warnings[0]


# guest-flush, with a fake of virsh; test_scripts.py has a guest

VIRSH = """
case "$8" in
    *guest-exec-status*)
        if [ -e {0}/ended ]; then echo '{{"return": {{"exited": true, "exitcode": {1}, "out-data": "aGVsZAo="}}}}'
        else touch {0}/ended; echo '{{"return": {{"exited": false}}}}'; fi ;;
    *) echo "$@" > {0}/request; echo '{{"return": {{"pid": 7}}}}' ;;
esac
"""


@pytest.mark.parametrize("status", [0, 3])
def test_program_in_the_guest_is_waited_for(around: Around, tmp_path: Path, status: int) -> None:
    around.link("guest-flush", ScriptPhase.PRE_BACKUP)
    around.fake("virsh", VIRSH.format(tmp_path, status))
    (around.directory / ".guest-flush").write_text("/usr/local/sbin/db-backup\n")
    assert around.run(ScriptPhase.PRE_BACKUP, {}) == ["held"]
    request = (tmp_path / "request").read_text()
    assert request.startswith(f"-q -c qemu:///system qemu-agent-command --timeout 30 {UUID} ")
    sent = json.loads(request[request.index("{") : request.rindex("}") + 1])
    assert sent["arguments"] == {
        "path": "/usr/local/sbin/db-backup",
        "arg": ["pre-backup"],
        "capture-output": True,
    }
    assert bool(around.recorder.warnings) == bool(status)


def test_what_does_not_answer_or_end_in_the_guest_stops_the_backup(around: Around) -> None:
    around.link("guest-flush", ScriptPhase.PRE_BACKUP)
    [said] = around.run(ScriptPhase.PRE_BACKUP, {})
    assert said == "there is no .guest-flush with the path of the program in the guest"
    (around.directory / ".guest-flush").write_text("/x\n")
    around.fake("virsh", "echo error: Guest agent is not responding >&2; exit 1")
    assert around.run(ScriptPhase.PRE_BACKUP, {}) == ["error: Guest agent is not responding"]
    around.fake("virsh", 'echo \'{"return": {"pid": 1, "exited": false}}\'')
    begun = time.monotonic()
    assert around.run(ScriptPhase.PRE_BACKUP, {}, timeout_s=1.5) == ["/x pre-backup has not ended in the guest"]
    assert time.monotonic() - begun < 10
    assert len(around.recorder.warnings) == 3
