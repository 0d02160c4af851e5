"""Back up QEMU virtual machines that libvirt manages, running or off, every byte of one moment.

The package is a house of floors; imports point down only (import-linter checks it, see setup.cfg):

    doors        cli                  (libvirt's own door, hooks/qemu, stands alone)
    operations   backup  restore  recovery  completion  transaction  bitmap  session
    engine       job  checkpoint  source  freeze  watchdog  target  images  undo
    record       repository  manifest  journal  hooks    (beside the engine)
    sessions     host  monitor  qemu_img  storage_daemon  image_chain  process
    planning     plan  chain  blockgraph  domainxml  safety  transactions: checker  schema  rules  actions  (no I/O)
    words        model  names  report  errors  fields  stop  wording
"""

__version__ = "0.1.0"
