"""Arguments for QEMU that can give the guest storage of the host are recognized, and so is what is not known."""

from __future__ import annotations

import pytest

from vbackup.domain import qemu_arguments


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], []),
        (["-cpu", "host,+x", "-global", "a=b", "-no-hpet", "-device", "virtio-rng-pci,rng=r"], []),
        (["-object", "rng-random,id=r,filename=/dev/urandom", "-object", '{"qom-type": "iothread", "id": "i"}'], []),
        (["-drive", "file=/x,password=secret", "-device", "virtio-blk-pci,drive=x"], ["-drive"]),
        (["--drive", "file=/x"], ["-drive"]),
        (["-blockdev", '{"driver": "file"}', "-drive", "x", "-drive", "y"], ["-blockdev", "-drive"]),
        (["/disk.img"], ["-hda"]),
        (["-hda", "/x", "-cdrom", "/y", "-pflash", "/z", "-sd", "/s"], ["-hda", "-cdrom", "-pflash", "-sd"]),
        (["-fsdev", "local,path=/srv,id=f", "-device", "virtio-9p-pci,fsdev=f"], ["-fsdev", "-device"]),
        (["-virtfs", "local,path=/srv"], ["-virtfs"]),
        (["-device", "vfio-pci,host=01:00.0"], ["-device"]),
        (["-device", '{"driver": "vhost-user-fs-pci"}', "-device", "driver=usb-host"], ["-device"]),
        (["-device", "{"], ["-device"]),
        (["-object", "memory-backend-file,mem-path=/dev/shm/x,share=on"], ["-object"]),
        (["-object", "qom-type=filter-dump,file=/x"], ["-object"]),
        (["-serial", "file:/log", "-debugcon", "stdio", "-serial", "pty"], ["-serial"]),
        (["-chardev", "file,id=c,path=/log", "-chardev", "socket,path=/s,id=d"], ["-chardev"]),
        (["-chardev", "backend=file,id=c,path=/log"], ["-chardev"]),
        (["-device", "id=x,driver=vfio-pci,host=01:00.0"], ["-device"]),
        (["-monitor", "unix:/s,server,nowait", "-qmp", "file:/log"], ["-qmp"]),
        (["-D", "/log", "-one-of-a-newer-qemu", "x"], ["-D", "-one-of-a-newer-qemu"]),
        (["-serial", "mon:stdio", "-serial", "mon:file:/log"], ["-serial"]),
        (["-audiodev", "none,id=a", "-audio", "driver=spice"], []),
        (["-audiodev", "wav,id=a,path=/x.wav", "-audio", '{"driver": "wav"}'], ["-audiodev", "-audio"]),
        (["-"], ["-"]),
    ],
)
def test_options_that_can_be_storage_are_named(arguments: list[str], expected: list[str]) -> None:
    assert qemu_arguments.storage(arguments) == expected


def test_values_are_not_told() -> None:
    assert "secret" not in str(qemu_arguments.storage(["-drive", "file=nbd://u:secret@h", "secret"]))
