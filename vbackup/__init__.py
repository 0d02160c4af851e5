"""Back up running QEMU virtual machines that libvirt manages, every byte of one moment.

The package is a house of floors; imports point down only (import-linter checks it, see setup.cfg):

    doors        cli
    operations   backup  restore
    engine       job  checkpoint  freeze  target  undo        record: repository  manifest
    sessions     host  monitor  qemu_img
    planning     plan  chain  blockgraph  domainxml           transactions: checker  schema  rules  actions  (no I/O)
    words        model  names  report  errors  fields  stop  wording
"""

__version__ = "0.1.0"
