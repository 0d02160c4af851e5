"""vbackup's side of the libvirt hook script, the file ``qemu`` in this directory (in the source tree: hooks/qemu).

libvirt runs the installed script at each start and end of a domain. The script imports nothing from vbackup; the two
share only files: ``marks`` and ``half_restored`` write what the script reads, ``events`` reads what it writes.
``install`` puts the script where libvirt looks for it, ``daemons`` makes libvirt look.
"""
