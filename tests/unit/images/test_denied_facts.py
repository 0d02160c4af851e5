"""The facts that images.denied explains, gathered from real files and users."""

from __future__ import annotations

import os
import pwd
import stat
import struct
from pathlib import Path

import pytest

from vbackup.images import denied_facts
from vbackup.images.denied import User, explain
from vbackup.model import SecurityLabel
from vbackup.repository.repository import Repository

PROFILE = "libvirt-f0000000"


def test_facts_of_a_real_image(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "repo")
    image = repository.path / "u" / "i.partial" / "vda.qcow2"
    image.parent.mkdir(parents=True)
    image.touch(mode=0o600)
    me = pwd.getpwuid(os.getuid())
    labels = [SecurityLabel("dac", f"+{me.pw_uid}:+{me.pw_gid}"), SecurityLabel("apparmor", PROFILE)]
    found = denied_facts.gather(image, labels, by_descriptor=False)
    assert (found.path, found.repository) == (str(image), str(repository.path))
    assert [place.path for place in found.places] == [str(path) for path in (*reversed(image.parents), image)]
    assert stat.S_IMODE(found.places[-1].mode) == 0o600
    assert found.places[-1].owner == me.pw_name
    assert found.user is not None
    assert (found.user.name, found.user.uid, found.user.groups >= {me.pw_gid}) == (me.pw_name, me.pw_uid, True)
    assert (found.apparmor_profile, found.selinux_context) == (PROFILE, None)


@pytest.mark.parametrize("label", ["nobody-of-this-host:x", "+12:no-such-group", "+x:+y", "", ":"])
def test_label_of_an_unknown_user_is_ignored(tmp_path: Path, label: str) -> None:
    assert denied_facts.gather(tmp_path, [SecurityLabel("dac", label)], by_descriptor=False).user is None


def test_user_by_name_and_by_a_number_without_a_name(tmp_path: Path) -> None:
    def user(label: str) -> User | None:
        return denied_facts.gather(tmp_path, [SecurityLabel("dac", label)], by_descriptor=False).user

    root = user("root:root")
    assert root is not None
    assert (root.name, root.uid) == ("root", 0)
    assert user("+987654:+987655") == User("987654", 987654, frozenset((987655,)))


def test_image_that_cannot_be_seen_ends_the_way(tmp_path: Path) -> None:
    found = denied_facts.gather(tmp_path / "none" / "vda.qcow2", [], by_descriptor=False)
    assert [place.path for place in found.places][-1] == str(tmp_path)
    assert "QEMU may not write" in explain(found)


def test_acl_is_seen(tmp_path: Path) -> None:
    # Version 2, and entries of tag, permissions, id: what "setfacl -m u:1:x" sets (linux/posix_acl_xattr.h).
    nobody = 0xFFFFFFFF
    entries = [(0x01, 7, nobody), (0x02, 1, 1), (0x04, 0, nobody), (0x10, 1, nobody), (0x20, 0, nobody)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    assert not denied_facts.gather(tmp_path, [], by_descriptor=False).places[-1].has_acl
    try:
        os.setxattr(tmp_path, "system.posix_acl_access", acl)
    except OSError as err:
        pytest.skip(f"no ACLs here: {err}")
    assert denied_facts.gather(tmp_path, [], by_descriptor=False).places[-1].has_acl
