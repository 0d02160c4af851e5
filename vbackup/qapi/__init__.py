"""QMP transactions and QEMU's schema as data: built, parsed and checked without I/O."""
