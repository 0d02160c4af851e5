"""The parts of a backup in QEMU: plan, base, moment, copy and finish."""
