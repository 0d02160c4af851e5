"""Speak to QEMU's guest agent in a running domain: commands, files, the state of its filesystems.

Commands are those of the agent's QAPI (guest-exec, guest-file-*, guest-fsfreeze-status), sent through
libvirt. vbackup has its own way to the agent; this one is for those who look at vbackup from outside.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import vbackup.domain.host  # noqa: F401  # first: it says where libvirt logs to, and libvirt reads that when it is imported

# isort: split
import libvirt
import libvirt_qemu

AGENT_PORT = "org.qemu.guest_agent.0"
ANSWER_S = 10
#: How often the guest is asked whether a program has ended; the agent tells nobody.
ASK_AGAIN_S = 0.02


class Agent:
    """The agent of one domain."""

    def __init__(self, domain: Any) -> None:
        self._domain = domain

    def execute(self, command: str, **arguments: Any) -> Any:
        """Send one command and return its "return"; underscores in names become dashes."""
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
        return json.loads(libvirt_qemu.qemuAgentCommand(self._domain, json.dumps(request), ANSWER_S, 0))["return"]

    def is_connected(self) -> bool:
        """True if the guest has the agent's port open, as libvirt says."""
        channel = ElementTree.fromstring(self._domain.XMLDesc(0)).find(
            f"devices/channel/target[@name='{AGENT_PORT}'][@state='connected']"
        )
        return channel is not None

    def wait(self, timeout_s: float = 60) -> None:
        """Until the agent answers. Raises TimeoutError."""
        with self._changes() as changed:
            self._until_connected(True, changed, timeout_s)
        self.execute("guest-ping")

    def wait_gone(self, timeout_s: float = ANSWER_S) -> None:
        """Until libvirt has seen the agent go. Raises TimeoutError."""
        with self._changes() as changed:
            self._until_connected(False, changed, timeout_s)

    def run(self, *argv: str, timeout_s: float = 60) -> str:
        """Run a program in the guest and return what it printed; AssertionError where it fails."""
        pid = self.execute("guest-exec", path=argv[0], arg=list(argv[1:]), capture_output=True)["pid"]
        deadline = time.monotonic() + timeout_s
        pause = threading.Event()
        while True:
            status = self.execute("guest-exec-status", pid=pid)
            if status["exited"]:
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"{argv} did not end in the guest within {timeout_s:.0f} s.")
            pause.wait(ASK_AGAIN_S)
        printed, complained = (base64.b64decode(status.get(name, "")).decode() for name in ("out-data", "err-data"))
        assert status.get("exitcode") == 0, f"{argv} in the guest: {status.get('exitcode')} {complained}"
        return printed

    def write(self, path: str, data: bytes) -> None:
        """Make a file in the guest; it is on the guest's disk when this returns."""
        with self._open(path, "w") as handle:
            self.execute("guest-file-write", handle=handle, buf_b64=base64.b64encode(data).decode())
            self.execute("guest-file-flush", handle=handle)
        self.run("/bin/sync")

    def read(self, path: str) -> bytes:
        """A (small) file of the guest."""
        with self._open(path, "r") as handle:
            return base64.b64decode(self.execute("guest-file-read", handle=handle)["buf-b64"])

    def sha256(self, path: str) -> str:
        """The SHA-256 of a file of the guest, computed there."""
        return self.run("/bin/sha256sum", path).split()[0]

    def filesystem_status(self) -> str:
        """Whether filesystems are "frozen" or "thawed"."""
        status: str = self.execute("guest-fsfreeze-status")
        return status

    @contextmanager
    def _open(self, path: str, mode: str) -> Iterator[int]:
        handle: int = self.execute("guest-file-open", path=path, mode=mode)
        try:
            yield handle
        finally:
            self.execute("guest-file-close", handle=handle)

    @contextmanager
    def _changes(self) -> Iterator[threading.Event]:
        """An event that is set whenever the agent comes or goes."""
        changed = threading.Event()
        connection = self._domain.connect()
        registered = connection.domainEventRegisterAny(
            self._domain, libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, lambda *_details: changed.set(), None
        )
        try:
            yield changed
        finally:
            connection.domainEventDeregisterAny(registered)

    def _until_connected(self, wanted: bool, changed: threading.Event, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self.is_connected() is not wanted:
            if not changed.wait(max(0, deadline - time.monotonic())):
                state = "did not come" if wanted else "did not go"
                raise TimeoutError(f"The agent of domain {self._domain.name()} {state} within {timeout_s:.0f} s.")
            changed.clear()
