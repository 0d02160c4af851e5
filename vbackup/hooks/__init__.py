"""What vbackup has to do with libvirt's hook script, the file ``qemu`` beside this one (in the sources hooks/qemu).

libvirt runs the installed script at each start and end of a domain; it stands alone and imports nothing of vbackup.
The two meet in files only: ``marks`` writes what the script reads, ``events`` reads what it writes. ``install`` puts it
where libvirt looks for it.
"""
