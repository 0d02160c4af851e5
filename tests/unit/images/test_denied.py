"""Why QEMU may not write an image: modes, SELinux and AppArmor are distinguished, each with its remedy."""

from __future__ import annotations

import itertools
import stat
import subprocess
from pathlib import Path

import pytest

from vbackup.images.denied import Facts, Place, User, explain

QEMU = User("libvirt-qemu", 64055, frozenset((109, 36)))
IMAGE = "/srv/backup/u/i.partial/vda.qcow2"
PROFILE, CONTEXT = "libvirt-f0000000", "system_u:system_r:svirt_t:s0:c1,c2"


def places(*, closed: str | None = None, image: int = 0o666, has_acl: bool = False) -> tuple[Place, ...]:
    """The path to the image; only its owner may enter the directory ``closed``."""
    modes = {str(path): stat.S_IFDIR | 0o755 for path in reversed(Path(IMAGE).parents)}
    if closed is not None:
        modes[closed] = stat.S_IFDIR | 0o700
    modes[IMAGE] = stat.S_IFREG | image
    return tuple(Place(path, mode, 0, 0, "root", has_acl and path == closed) for path, mode in modes.items())


def facts(**changes: object) -> Facts:
    values = {"path": IMAGE, "repository": "/srv/backup", "by_descriptor": False, "places": places(), "user": QEMU}
    return Facts(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("closed", ["/srv", "/srv/backup", "/srv/backup/u/i.partial"])
def test_first_closed_directory_is_named(closed: str) -> None:
    said = explain(facts(places=places(closed=closed, image=0o600)))
    assert f"runs as user libvirt-qemu, who may not enter the directory {closed} (owner root, mode 0700)" in said
    assert "Run vbackup on the host itself" in said


def test_closed_image_is_named() -> None:
    said = explain(facts(places=places(image=0o640)))
    assert f"who may not read and write {IMAGE} (owner root, mode 0640)" in said


@pytest.mark.parametrize(
    ("uid", "gid", "mode", "may"),
    [
        (64055, 0, 0o700, True),
        (64055, 0, 0o077, False),  # the owner's bits count for the owner, were the others' wider
        (0, 36, 0o050, True),
        (0, 36, 0o707, False),
        (0, 0, 0o001, True),
        (0, 0, 0o776, False),
    ],
)
def test_class_that_fits_first_decides(uid: int, gid: int, mode: int, may: bool) -> None:
    assert QEMU.may(Place("/d", stat.S_IFDIR | mode, uid, gid, "x"), 1) is may


# What refuses, each with the expected words, the strongest evidence first.
DAC = ({"places": places(closed="/srv")}, "may not enter the directory /srv ")
SELINUX = ({"selinux_context": CONTEXT, "file_context": "system_u:object_r:mnt_t:s0"}, "SELinux probably refuses it")
APPARMOR = ({"apparmor_profile": PROFILE}, "AppArmor probably refuses it")


@pytest.mark.parametrize("by_descriptor", [False, True], ids=["path", "descriptor"])
@pytest.mark.parametrize("present", list(itertools.product([False, True], repeat=3)), ids=str)
def test_strongest_evidence_is_told(present: tuple[bool, bool, bool], by_descriptor: bool) -> None:
    """A mode that forbids it is certain evidence, but does not matter for an open descriptor."""
    given: dict[str, object] = {"by_descriptor": by_descriptor}
    expected = None
    for is_there, (changes, words) in zip(present, (DAC, SELINUX, APPARMOR)):
        if is_there:
            given.update(changes)
            if expected is None and not (by_descriptor and words is DAC[1]):
                expected = words
    said = explain(facts(**given))
    told = [words for _, words in (DAC, SELINUX, APPARMOR) if words in said]
    assert told == ([expected] if expected else [])
    assert said.startswith(f"QEMU may not write {IMAGE}: ")
    assert ("cannot carry file descriptors" in said) is not by_descriptor
    if expected is None:
        assert ("the kernel log may show" if by_descriptor else "check the host of QEMU") in said


def test_selinux_labels_and_commands_are_shown() -> None:
    said = explain(facts(by_descriptor=True, repository="/srv/it's", **SELINUX[0]))
    assert f"QEMU runs as {CONTEXT}, and the image has the label system_u:object_r:mnt_t:s0" in said
    command = said.split("may write: ")[1].split(" && ")[0]
    argv = subprocess.run(["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True).stdout
    assert argv.splitlines()[-1] == "/srv/it's(/.*)?"


def test_apparmor_profile_and_rule_are_shown() -> None:
    said = explain(facts(apparmor_profile=PROFILE))
    assert '"/srv/backup/**" rwk,' in said
    assert f"apparmor_parser -r /etc/apparmor.d/libvirt/{PROFILE}" in said


def test_acl_is_not_judged_by_the_mode() -> None:
    said = explain(facts(places=places(closed="/srv/backup", has_acl=True)))
    assert "may not enter" not in said
    assert "Check the ACL of /srv/backup." in said


def test_user_of_another_host_is_not_guessed() -> None:
    said = explain(facts(user=None, places=places(closed="/srv")))
    assert "may not enter" not in said
    assert "give that user access to the repository" in said
