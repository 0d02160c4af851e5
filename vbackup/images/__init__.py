"""Target images: made, opened in QEMU, written back, flattened and digested."""
