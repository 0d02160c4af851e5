"""QEMU's side: monitors, jobs, the block graph, the storage daemon, qemu-img."""
