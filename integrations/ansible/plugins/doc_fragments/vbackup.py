"""Options that all modules of the collection have."""

from __future__ import annotations


class ModuleDocFragment:
    """What ``extends_documentation_fragment: vbackup.vbackup.vbackup`` adds."""

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
