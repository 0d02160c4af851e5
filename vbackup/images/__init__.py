"""Target images: create them, open them in QEMU, write them back, digest and flatten them."""
