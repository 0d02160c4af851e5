"""Options that several modules of the collection have."""

from __future__ import annotations


class ModuleDocFragment:
    """What ``extends_documentation_fragment: vbackup.vbackup.vbackup`` adds; ``vbackup.vbackup.vbackup.work`` WORK."""

    DOCUMENTATION = r"""
options:
  repository:
    description:
      - The repository, a directory that C(vbackup init) has created.
    type: path
    required: true
  connection:
    description:
      - URI of the libvirt to connect to. Without it, libvirt chooses.
    type: str
  executable:
    description:
      - The command, a path or a name that is found in I(PATH).
    type: path
    default: vbackup
requirements:
  - vbackup on the managed host
  - Python 3.9 on the managed host
"""

    WORK = r"""
options:
  disks:
    description:
      - Only these disks, named as in the domain's XML.
    type: list
    elements: str
    default: []
  speed:
    description:
      - Limit of the speed of each disk, such as C(50M).
    type: str
  wait_lock:
    description:
      - How long to wait for another vbackup that is working on the domain, such as C(5m). Of a restore, only with
        I(in_place).
    type: str
  scripts:
    description:
      - Directory with scripts that are run around the work; see vbackup-scripts(7).
    type: path
  run_scripts:
    description:
      - Whether scripts are run at all.
    type: bool
    default: true
"""
