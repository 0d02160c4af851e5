#!/usr/bin/python
"""Say what is in a repository of vbackup."""

# Copyright: the vbackup contributors
# SPDX-License-Identifier: LGPL-2.1-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vbackup_info
short_description: List the domains and backups in a repository of vbackup
description:
  - Returns what C(vbackup list --json) prints. Nothing is changed.
options:
  domain:
    description:
      - Name or UUID of a domain. Without it, the backups of all domains are returned.
    type: str
extends_documentation_fragment:
  - vbackup.vbackup.vbackup
attributes:
  check_mode:
    description: Does the same, as nothing is changed.
    support: full
author:
  - the vbackup contributors
"""

EXAMPLES = r"""
- name: Look which backups there are
  vbackup.vbackup.vbackup_info:
    repository: /srv/backup
  register: found

- name: Fail if a backup is damaged
  ansible.builtin.assert:
    that: item.damaged == 0 and item.broken == 0
  loop: "{{ found.domains }}"
"""

RETURN = r"""
domains:
  description:
    - The domains, as in vbackup.list/1; empty if the repository has none, or not the wanted one.
  returned: success
  type: list
  elements: dict
backups:
  description:
    - The backups, the oldest first, as in vbackup.list/1.
  returned: success
  type: list
  elements: dict
broken:
  description:
    - Backups that cannot be used, each with the reason.
  returned: success
  type: list
  elements: dict
repository_id:
  description:
    - The id of the repository.
  returned: success
  type: str
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

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vbackup.vbackup.plugins.module_utils.vbackup import (
    ARGUMENTS,
    NOT_FOUND,
    Failure,
    Vbackup,
    fail,
    option,
)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec={**ARGUMENTS, "domain": {"type": "str"}}, supports_check_mode=True)
    domain = module.params["domain"]
    try:
        command = Vbackup(module)
        try:
            found = command.run("list", "--all" if domain is None else option("domain", domain))
        except Failure as failure:
            if domain is None or failure.status != NOT_FOUND:
                raise
            found = {**command.run("list"), "domains": [], "backups": [], "broken": []}
        module.exit_json(
            changed=False,
            domains=found["domains"],
            backups=found["backups"],
            broken=found["broken"],
            repository_id=found["repository"]["id"],
        )
    except Failure as failure:
        fail(module, failure)


if __name__ == "__main__":
    main()
