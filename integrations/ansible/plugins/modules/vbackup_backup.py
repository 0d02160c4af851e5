#!/usr/bin/python
"""Back up a domain with vbackup."""

# Copyright: the vbackup contributors
# SPDX-License-Identifier: LGPL-2.1-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vbackup_backup
short_description: Back up a libvirt domain with vbackup
description:
  - Makes a backup of a domain that is running or shut off.
  - With I(max_age), only if there is no good backup that is younger.
options:
  domain:
    description:
      - Name or UUID of the domain.
    type: str
    required: true
  max_age:
    description:
      - Make no backup if the newest good one is younger than this, such as C(12h), C(7d) or C(90m).
      - A backup is good if it can be read and no verify has found damage in it. With I(disks), it has to contain all of
        them, otherwise no disk may have been excluded from it. With I(level=full) or another level, only backups of
        that level count. One that is from the future, by more than five minutes, does not count; a clock was wrong.
      - Without it, every run makes a backup.
    type: str
  level:
    description:
      - How much to copy; see vbackup(1).
    type: str
    choices: [auto, full, incremental, differential, copy]
    default: auto
  exclude_disks:
    description:
      - Do not back up these disks. Backups without them count for I(max_age), then.
    type: list
    elements: str
    default: []
  quiesce:
    description:
      - Whether to freeze the guest's filesystems.
    type: str
    choices: [auto, required, "no"]
    default: auto
  compress:
    description:
      - Whether QEMU compresses the images.
    type: str
    choices: [none, auto, zstd, zlib]
    default: none
  fleecing:
    description:
      - Directory of a fleecing area.
    type: path
  exclusive:
    description:
      - No other host uses the images of a domain that is shut off.
    type: bool
    default: false
  note:
    description:
      - A line of text for people, which is kept with the backup.
    type: str
extends_documentation_fragment:
  - vbackup.vbackup.vbackup
  - vbackup.vbackup.vbackup.work
attributes:
  check_mode:
    description: Plans the backup and lets QEMU check the plan, with C(vbackup backup --dry-run).
    support: full
author:
  - the vbackup contributors
"""

EXAMPLES = r"""
- name: Back up a domain, unless that was done in the last 20 hours
  vbackup.vbackup.vbackup_backup:
    domain: web
    repository: /srv/backup
    max_age: 20h

- name: Make a full backup each week, with frozen filesystems
  vbackup.vbackup.vbackup_backup:
    domain: web
    repository: /srv/backup
    level: full
    max_age: 7d
    quiesce: required
    note: the weekly full
"""

RETURN = r"""
backup:
  description:
    - The backup that was made, as vbackup prints it (vbackup.backup/1), or the young one that is there, as
      C(vbackup list) has it. Not there in check mode if a backup would be made.
  returned: success, unless a backup would be made in check mode
  type: dict
  sample: {"id": "20261123T101500Z-full", "level": "full"}
plan:
  description:
    - The plan of the backup that would be made (vbackup.plan/1).
  returned: in check mode, if a backup would be made
  type: dict
age_s:
  description:
    - How old the newest good backup was, in seconds.
  returned: with I(max_age), if there is one
  type: float
error:
  description:
    - vbackup's error document (vbackup.error/1).
  returned: failure
  type: dict
rc:
  description:
    - vbackup's exit status.
  returned: failure
  type: int
"""

import re
import time
from datetime import datetime, timezone
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

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_AGE = re.compile(r"(\d{1,9})([smhdw])", re.ASCII)
#: How far the clocks of two hosts may differ. A backup from further in the future would be young for ever.
_SKEW_S = 300


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            **WORK_ARGUMENTS,
            "domain": {"type": "str", "required": True},
            "max_age": {"type": "str"},
            "level": {
                "type": "str",
                "choices": ["auto", "full", "incremental", "differential", "copy"],
                "default": "auto",
            },
            "exclude_disks": {"type": "list", "elements": "str", "default": []},
            "quiesce": {"type": "str", "choices": ["auto", "required", "no"], "default": "auto"},
            "compress": {"type": "str", "choices": ["none", "auto", "zstd", "zlib"], "default": "none"},
            "fleecing": {"type": "path"},
            "exclusive": {"type": "bool", "default": False},
            "note": {"type": "str"},
        },
        supports_check_mode=True,
    )
    limit_s = _seconds(module)
    result: dict[str, Any] = {}
    try:
        command = Vbackup(module)
        if limit_s is not None:
            newest = _newest(command, module.params)
            if newest is not None:
                result["age_s"] = time.time() - _timestamp(newest["time"])
                if result["age_s"] < limit_s:
                    module.exit_json(changed=False, backup=newest, **result)
        words = ["backup", *_options(module.params)]
        if module.check_mode:
            module.exit_json(changed=True, plan=command.run(*words, "--dry-run"), **result)
        module.exit_json(changed=True, backup=command.run(*words), **result)
    except Failure as failure:
        fail(module, failure, **result)


def _seconds(module: AnsibleModule) -> int | None:
    text = module.params["max_age"]
    if text is None:
        return None
    match = _AGE.fullmatch(text)
    if match is None:
        module.fail_json(msg=f"max_age: {text!r} is not a time such as 90m, 12h or 7d")
    return int(match[1]) * _UNITS_S[match[2]]


def _timestamp(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc).timestamp()


def _newest(command: Vbackup, params: dict[str, Any]) -> dict[str, Any] | None:
    """Return the newest backup that is as good as the one that would be made, None without one."""
    wanted, excluded = set(params["disks"]), set(params["exclude_disks"])
    latest_s = time.time() + _SKEW_S
    for one in reversed(command.backups(params["domain"])):
        if _timestamp(one["time"]) > latest_s:
            continue
        has_level = params["level"] in ("auto", one["level"])
        has_disks = wanted <= set(one["disks"]) if wanted else set(one["excluded"]) <= excluded
        if has_level and has_disks:
            return one
    return None


def _options(params: dict[str, Any]) -> list[str]:
    words = work_options(params, "level", "quiesce", "compress", "fleecing", "note")
    words += [option("exclude-disk", ",".join(params["exclude_disks"]))] if params["exclude_disks"] else []
    words += ["--exclusive"] if params["exclusive"] else []
    return words


if __name__ == "__main__":
    main()
