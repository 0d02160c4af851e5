"""The whole story on a real guest, as a reader at a terminal sees it: ``python -m tests.demo`` (or ``make demo``).

    __main__         its options; the directory it works in, and the end of everything in it
    story            what is shown and proved
    runner           runs the commands, one at a time, and hands signals on to them
    domain           a short-lived process that starts, asks and ends the guest
    with_reference   runs ``vbackup backup`` and takes an independent copy of the same moment

The embedded libvirt can be held by one process at a time, so this process never opens it: vbackup and
the guest's helper take turns.
"""
