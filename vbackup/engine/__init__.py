"""The parts of a backup in QEMU: its plan, its base, its moment and its end."""
