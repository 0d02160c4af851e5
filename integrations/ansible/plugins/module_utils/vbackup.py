"""Run vbackup on the managed host, and pass on what it says."""

from __future__ import annotations

import json
from typing import Any

#: What add_common gives every module; see the documentation fragment.
ARGUMENTS = {
    "repository": {"type": "path", "required": True},
    "connection": {"type": "str"},
    "executable": {"type": "path", "default": "vbackup"},
}
#: What the modules have that do something; see the documentation fragment WORK.
WORK_ARGUMENTS = {
    "disks": {"type": "list", "elements": "str", "default": []},
    "speed": {"type": "str"},
    "wait_lock": {"type": "str"},
    "scripts": {"type": "path"},
    "run_scripts": {"type": "bool", "default": True},
}
#: No such domain (vbackup(1), EXIT STATUS).
NOT_FOUND = 4


class Failure(Exception):
    """vbackup ended with another status than 0; ``document`` is its error as JSON (vbackup.error/1)."""

    def __init__(self, status: int, document: dict[str, Any]) -> None:
        super().__init__(document.get("message", "vbackup has failed"))
        self.status = status
        self.document = document


class Vbackup:
    """The command, with the options that all modules have."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._executable = module.get_bin_path(module.params["executable"], required=True)
        self.repository = module.params["repository"]

    def run(self, *words: str) -> dict[str, Any]:
        """Return the JSON document that a command prints; its warnings become Ansible's. Raises Failure."""
        connection = self._module.params["connection"]
        argv = [self._executable, *words, "--json", "--progress", "json", "-r", self.repository]
        argv += [] if connection is None else ["-c", connection]
        status, out, err = self._module.run_command(argv, encoding=None)
        for line in err.decode("utf-8", "surrogateescape").splitlines():
            self._pass_on(line)
        try:
            document = json.loads(out.decode("utf-8", "surrogateescape") or "{}")
        except ValueError:
            document = {"message": f"{' '.join(argv)} did not print JSON"}
        if status != 0:
            if "message" not in document:
                document["message"] = err.decode("utf-8", "replace").strip() or f"vbackup ended with status {status}"
            raise Failure(status, document)
        return document

    def _pass_on(self, line: str) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            return
        if isinstance(event, dict) and event.get("event") == "warning":
            self._module.warn(event["message"])

    def backups(self, domain: str) -> list[dict[str, Any]]:
        """Return the good backups of a domain, the oldest first; none if it is not known. Raises Failure."""
        try:
            found = self.run("list", option("domain", domain))["backups"]
        except Failure as failure:
            if failure.status != NOT_FOUND:
                raise
            return []
        return [one for one in found if not {"broken", "damaged"} & set(one["states"])]


def option(name: str, value: Any) -> str:
    """Return an option as one word, so that no value is taken for another option."""
    return f"--{name}={value}"


def work_options(params: dict[str, Any], *more: str) -> list[str]:
    """Return the words for the domain and WORK_ARGUMENTS, and for ``more`` parameters that are given."""
    names = ("domain", *more, "speed", "wait_lock", "scripts")
    words = [option(name.replace("_", "-"), params[name]) for name in names if params[name] is not None]
    words += [option("disk", ",".join(params["disks"]))] if params["disks"] else []
    return words if params["run_scripts"] else [*words, "--no-scripts"]


def fail(module: Any, failure: Failure, **more: Any) -> None:
    """End the module with vbackup's error."""
    module.fail_json(msg=str(failure), rc=failure.status, error=failure.document, **more)
