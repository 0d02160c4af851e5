"""Back up running QEMU virtual machines that libvirt manages, every byte of one moment.

The package is a house of floors; imports point down only (import-linter checks it, see setup.cfg):

    doors        cli                  (libvirt's own door, hooks/qemu, stands alone)
    operations   backup  restore
    engine       job  checkpoint  freeze  target  undo        record: repository  manifest  hooks
    sessions     host  monitor  qemu_img
    planning     plan  chain  blockgraph  domainxml  actions  (no I/O)
    words        model  names  report  errors  fields  stop
"""

__version__ = "0.1.0"
