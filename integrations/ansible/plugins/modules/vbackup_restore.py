#!/usr/bin/python
"""Restore a backup of a domain with vbackup."""

# Copyright: the vbackup contributors
# SPDX-License-Identifier: LGPL-2.1-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vbackup_restore
short_description: Restore a backup of a libvirt domain with vbackup
description:
  - Restores the disks of a backup, and a domain XML for them, to a directory, or the disks of a domain that is shut off
    in place.
  - A restore to a directory is made once. The module keeps a record in the directory, C(.vbackup_restore.json). If it
    says that the wanted backup was restored there, nothing is done. If the directory has another restore in it, such as
    one of other disks, in another format, or without I(define), the module fails, and nothing is overwritten.
options:
  domain:
    description:
      - Name or UUID of the domain.
    type: str
    required: true
  backup:
    description:
      - Id of the backup. Without it and I(at), the newest, or whichever backup a former run has restored to I(output).
    type: str
  at:
    description:
      - Restore the newest backup that was made at this time or before, such as C(2026-11-23T10:15:00Z).
    type: str
  output:
    description:
      - Directory to restore to. This or I(in_place) is required.
    type: path
  in_place:
    description:
      - Restore the domain's own disks, while it is shut off. Only what differs is written, but every run does it, and
        is a change, whatever the disks were like.
    type: bool
    default: false
  format:
    description:
      - Format of the images in I(output); C(qcow2) without it.
    type: str
    choices: [qcow2, raw]
  define:
    description:
      - Define the restored domain in libvirt.
    type: bool
    default: false
  name:
    description:
      - With I(define) or I(start), the name of a new domain beside the original.
    type: str
  start:
    description:
      - Define the restored domain and start it.
    type: bool
    default: false
extends_documentation_fragment:
  - vbackup.vbackup.vbackup
  - vbackup.vbackup.vbackup.work
attributes:
  check_mode:
    description: Looks whether there is such a backup, and at I(output).
    support: full
author:
  - the vbackup contributors
"""

EXAMPLES = r"""
- name: Restore the newest backup of a domain to a directory, once
  vbackup.vbackup.vbackup_restore:
    domain: web
    repository: /srv/backup
    output: /var/lib/libvirt/images/web-restored

- name: Restore it as a new domain beside the original
  vbackup.vbackup.vbackup_restore:
    domain: web
    repository: /srv/backup
    output: /var/lib/libvirt/images/web-copy
    define: true
    name: web-copy
"""

RETURN = r"""
restore:
  description:
    - What was restored, as vbackup prints it (vbackup.restore/1 or vbackup.rollback/1), now or by a former run.
  returned: success, unless something would be restored in check mode
  type: dict
  sample: {"id": "20261123T101500Z-full", "domain_xml": "/var/lib/libvirt/images/web-restored/domain.xml"}
error:
  description:
    - vbackup's error document (vbackup.error/1).
  returned: failure of vbackup
  type: dict
rc:
  description:
    - vbackup's exit status.
  returned: failure of vbackup
  type: int
"""

import json
import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vbackup.vbackup.plugins.module_utils.vbackup import (
    ARGUMENTS,
    WORK_ARGUMENTS,
    Failure,
    Vbackup,
    fail,
    option,
    work_options,
)

RECORD = ".vbackup_restore.json"


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            **WORK_ARGUMENTS,
            "domain": {"type": "str", "required": True},
            "backup": {"type": "str"},
            "at": {"type": "str"},
            "output": {"type": "path"},
            "in_place": {"type": "bool", "default": False},
            "format": {"type": "str", "choices": ["qcow2", "raw"]},
            "define": {"type": "bool", "default": False},
            "name": {"type": "str"},
            "start": {"type": "bool", "default": False},
        },
        mutually_exclusive=[("backup", "at")],
        supports_check_mode=True,
    )
    if module.params["in_place"] == (module.params["output"] is not None):
        module.fail_json(msg="give output, or in_place: true, and not both")
    try:
        command = Vbackup(module)
        if module.params["in_place"]:
            _in_place(module, command)
        _to_directory(module, command)
    except Failure as failure:
        fail(module, failure)
    except (OSError, ValueError) as err:
        module.fail_json(msg=f"{module.params['output']}: {err}")


def _in_place(module: AnsibleModule, command: Vbackup) -> None:
    if module.check_mode:
        _wanted(module, command)
        module.exit_json(changed=True)
    document = command.run("restore", *_options(module.params), "--in-place")
    module.exit_json(changed=True, restore=document)


def _to_directory(module: AnsibleModule, command: Vbackup) -> None:
    output = module.params["output"]
    earlier = _earlier(output)
    if earlier is not None:
        restored = _checked(module, command, earlier)
        module.exit_json(changed=False, restore=restored)
    if os.path.lexists(os.path.join(output, "domain.xml")):
        module.fail_json(
            msg=f"{output} has a domain.xml that this module has not restored, so what is there is not known; give"
            " another directory, or remove it"
        )
    if module.check_mode:
        _wanted(module, command)
        module.exit_json(changed=True)
    document = command.run("restore", *_options(module.params), option("output", output))
    _record(os.path.join(output, RECORD), {"restore": document, "asked": _asked(module.params)})
    module.exit_json(changed=True, restore=document)


def _checked(module: AnsibleModule, command: Vbackup, record: dict[str, Any]) -> dict[str, Any]:
    """Return what a former run has restored; fail if that is another restore than the wanted one."""
    output, domain = module.params["output"], module.params["domain"]
    earlier: dict[str, Any] = record["restore"]
    if domain not in (earlier["domain"]["name"], earlier["domain"]["uuid"]):
        module.fail_json(msg=f"{output} has a restore of domain {earlier['domain']['name']}, not of {domain}")
    is_any = module.params["backup"] is None and module.params["at"] is None
    wanted = earlier["id"] if is_any else _wanted(module, command)
    if wanted != earlier["id"]:
        module.fail_json(
            msg=f"{output} has a restore of backup {earlier['id']}, but backup {wanted} is wanted; give another"
            " directory, or remove it"
        )
    for name, value in _asked(module.params).items():
        there = record["asked"][name]
        if value != there and (value or name not in ("define", "start")):  # a domain that is there does no harm
            module.fail_json(
                msg=f"{output} has a restore with {name}: {json.dumps(there)}, but {json.dumps(value)} is wanted; give"
                " another directory, or remove it"
            )
    missing = [disk["file"] for disk in earlier["disks"] if not os.path.lexists(disk["file"])]
    if missing:
        module.fail_json(msg=f"{missing[0]} is missing, which a former run has restored; remove {output} first")
    return earlier


def _asked(params: dict[str, Any]) -> dict[str, Any]:
    """Return the options that decide on what a restore is, but for the backup; no disks are all."""
    is_defined = params["define"] or params["start"]
    return {
        "disks": sorted(params["disks"]),
        "format": params["format"] or "qcow2",
        "define": is_defined,
        "start": params["start"],
        "name": params["name"] if is_defined else None,
    }


def _wanted(module: AnsibleModule, command: Vbackup) -> str:
    """Return the id of the requested backup. Raises Failure if that backup does not exist."""
    if module.params["backup"] is not None:
        words = (option("domain", module.params["domain"]), option("backup", module.params["backup"]))
        found: str = command.run("show", *words)["id"]
        return found
    until = [] if module.params["at"] is None else [option("until", module.params["at"])]
    backups = command.run("list", option("domain", module.params["domain"]), *until)["backups"]
    if not backups:
        raise Failure(6, {"message": f"There is no backup of domain {module.params['domain']} that old"})
    newest: str = backups[-1]["id"]
    return newest


def _earlier(output: str) -> dict[str, Any] | None:
    """Return the record of a former run in the directory, None without one. Raises OSError, ValueError."""
    try:
        with open(os.path.join(output, RECORD), encoding="utf-8") as file:
            document: dict[str, Any] = json.load(file)
    except FileNotFoundError:
        return None
    if not isinstance(document, dict) or not {"restore", "asked"} <= document.keys():
        raise ValueError(f"{RECORD} is damaged; remove the directory")
    return document


def _record(path: str, document: dict[str, Any]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        json.dump(document, file)


def _options(params: dict[str, Any]) -> list[str]:
    words = work_options(params, "backup", "at", "format", "name")
    words += [f"--{name}" for name in ("define", "start") if params[name]]
    return words


if __name__ == "__main__":
    main()
