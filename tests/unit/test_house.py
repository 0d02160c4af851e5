"""The drawing in vbackup/__init__.py is the package as it is, and tests/unit mirrors it: every room, every module."""

from __future__ import annotations

import ast
import configparser
import functools
import re
from pathlib import Path

import pytest

import vbackup

TOP = Path(vbackup.__file__).parent
TESTS = Path(__file__).parents[1]
UNIT = TESTS / "unit"
ROOMS = sorted(path.parent.name for path in TOP.glob("*/__init__.py"))
WORDS = re.compile(r"\w+")

#: Modules that have no file of their name in tests/unit: the file in tests that tests each, and names or imports it.
ELSEWHERE = {
    "__main__": "unit/cli/test_cli.py",  # runs it as a process
    "cli.handlers.hooks": "unit/hooks/test_install.py",  # which runs ``vbackup hooks``
    "cli.merges": "unit/cli/handlers/test_consolidate.py",  # prints its plan with merges
    "domain.watchdog.__main__": "unit/domain/test_watchdog.py",  # starts it
    "domain.boot_guard.__main__": "unit/domain/test_boot_guard.py",  # starts it
    "engine.restored_checkpoint": "end_to_end/test_restored_checkpoint.py",  # needs the program
    "engine.rollback": "end_to_end/test_rollback.py",
    "operations.rollback": "end_to_end/test_rollback.py",
    "engine.audit_copy": "end_to_end/test_audit.py",  # needs QEMU: a quorum, and a bitmap that it stores
    "http.served": "unit/http/test_server.py",  # protocols
    "images.opened_point": "contract/test_opened_point.py",  # needs the program
    "images.target_server": "end_to_end/test_remote.py",  # needs a QEMU that writes to it
    "operations.remote_side": "end_to_end/test_remote.py",  # needs a hypervisor, as the next one
    "operations.repair_work": "unit/operations/test_repair.py",  # steps that make sense one after the other
    "operations.repair_merges": "unit/operations/test_repair.py",
    "operations.repair_files": "unit/operations/test_repair.py",
    "operations.repair_backups": "unit/operations/test_repair.py",
    "operations.repair_images": "unit/operations/test_repair.py",
    "operations.restore_there": "end_to_end/test_restore_there.py",  # needs a hypervisor, as the next one
    "operations.disk_places_there": "end_to_end/test_restore_there.py",
    "operations.tpm_there": "end_to_end/test_restore_there.py",
    "images.there": "end_to_end/test_restore_there.py",
    "qemu.nbd_layer": "contract/test_nbd_layer.py",  # needs a server
    "operations.in_place_host": "end_to_end/test_full_in_place.py",
    "operations.full_in_place": "end_to_end/test_full_in_place.py",  # what it writes, a domain's QEMU has to read
    "domain.lifecycle": "end_to_end/test_live_restore.py",  # needs libvirt, QEMU and a storage daemon, as the next ones
    "engine.live_backing": "end_to_end/test_live_restore.py",
    "operations.live_abort": "end_to_end/test_live_restore.py",
    "operations.live_resume": "end_to_end/test_live_restore.py",
    "operations.live_place": "end_to_end/test_live_there.py",  # needs a hypervisor, as the next ones
    "operations.live_there": "end_to_end/test_live_there.py",
    "images.live_point_there": "end_to_end/test_live_there.py",
    "engine.session_close": "end_to_end/test_sessions.py",  # needs libvirt, QEMU and the watcher, as the next ones
    "engine.session_server": "end_to_end/test_sessions.py",
    "engine.session_survey": "end_to_end/test_sessions.py",
    "operations.session_daemon": "end_to_end/test_sessions.py",
    "operations.session_elsewhere": "end_to_end/test_remote_sessions.py",  # needs a hypervisor
    "operations.session_end": "end_to_end/test_sessions.py",
    "operations.session_offline": "end_to_end/test_sessions.py",
    "operations.session_status": "end_to_end/test_sessions.py",
    "operations.session_watcher": "end_to_end/test_sessions.py",
    "operations.session_watcher.__main__": "end_to_end/test_sessions.py",
    "operations.checkpoint": "end_to_end/test_sessions.py",
    "stores.cloud_kinds": "contract/test_s3.py",  # needs an S3 server, as the next ones
    "stores.s3": "contract/test_s3.py",
    "stores.s3_requests": "contract/test_s3.py",
    "stores.s3_upload": "contract/test_s3.py",
    "stores.sftp": "end_to_end/test_copy_away.py",  # needs an SFTP server
    "operations.replicate": "end_to_end/test_standby.py",  # needs two libvirts and a storage daemon, as the next ones
    "operations.standby_files": "end_to_end/test_standby.py",
    "operations.standby_documents": "end_to_end/test_standby.py",
    "operations.failover": "end_to_end/test_standby.py",
    "operations.failover_test": "end_to_end/test_standby.py",
    "operations.failback": "end_to_end/test_standby.py",
    "operations.linked_standby": "end_to_end/test_standby.py",
    "domain.linked_images": "end_to_end/test_standby.py",
    "engine.rollback_reach": "end_to_end/test_standby.py",
    "images.flatten": "end_to_end/test_flatten.py",  # needs long chains and a storage daemon
    "operations.fsck": "end_to_end/test_fsck.py",
    "operations.mount": "end_to_end/test_mount.py",  # needs a storage daemon and FUSE, in a separate process
    "operations.umount": "end_to_end/test_mount.py",
    "operations.inside": "end_to_end/test_guest_files.py",  # needs a storage daemon and libguestfs
    "operations.ls": "unit/cli/handlers/test_ls.py",  # all of them with a fake of guestfish
    "operations.cp": "unit/cli/handlers/test_cp.py",
    "operations.cat": "unit/cli/handlers/test_cat.py",
    "operations.search": "unit/cli/handlers/test_search.py",
    "operations.consolidation": "end_to_end/test_merge_trees.py",
    "repository.merge_stage": "end_to_end/test_merge_kills.py",
    "repository.merged_list": "end_to_end/test_merge_trees.py",
    "cli.copies": "unit/cli/handlers/test_copy.py",  # as its commands do
    "cli.copies_prune": "unit/cli/handlers/test_copy.py",
    "cli.copies_verify": "unit/cli/handlers/test_copy.py",
    "cli.copies_rewrap": "end_to_end/test_sealed_copies.py",
    "cli.handlers.fetch": "unit/cli/handlers/test_copy.py",
    "copies.composing": "end_to_end/test_copy.py",  # needs real images and a storage daemon, as the next ones
    "copies.download": "end_to_end/test_copy.py",
    "copies.points": "end_to_end/test_copy.py",
    "copies.staging": "end_to_end/test_copy.py",
    "copies.upload": "end_to_end/test_copy.py",
    "copies.view": "end_to_end/test_copy.py",
    "operations.copy": "end_to_end/test_copy.py",
    "operations.copy_verify": "end_to_end/test_copy.py",
    "operations.fetch": "end_to_end/test_copy.py",
    "images.joining": "end_to_end/test_merge_trees.py",  # through operations.consolidation
    "qapi.actions.backups": "unit/qapi/test_actions.py",  # one table has an example of every action
    "qapi.actions.base": "unit/qapi/test_actions.py",
    "qapi.actions.bitmaps": "unit/qapi/test_actions.py",
    "qapi.actions.snapshots": "unit/qapi/test_actions.py",
    "qemu.qmp_socket": "contract/test_end_of_qemu.py",  # and all contract tests run over it
    "qemu.storage_daemon": "contract/test_storage_daemon.py",  # needs the program
    "remote.daemon": "end_to_end/test_link.py",
}
#: Files in tests/unit that belong to no module.
NO_MODULE = {
    "operations/test_run_year.py": "operations.run over a year, with the real retention",
    "test_house.py": "the package as a whole",
    "test_man.py": "the man pages and this package's options, statuses and documents",
    "test_compatible.py": "the schemas beside those that were published",
    "test_json_page.py": "the man page vbackup-json(7) with its examples",
    "test_start.py": "what every command imports",
    "test_hostile.py": "all commands that read a repository",
    "test_bench.py": "the package tests.bench",
    "test_config_page.py": "the man page vbackup.toml(5) and the keys of the configuration",
    "test_packaging.py": "the packages' own files, in packaging",
    "overview/test_page_style.py": "the colours of the report's page",
    "cli/test_cli.py": "vbackup/cli/__init__.py, which is the room itself",
    "scripts/test_examples.py": "the scripts in hooks/examples and in vbackup-scripts(7)",
    "hooks/test_script.py": "the script hooks/qemu, which imports nothing from vbackup",
}


def drawn(room: str) -> set[str]:
    """The modules that the drawing has for a room: the words after its colon, but for what is in brackets."""
    doc = vbackup.__doc__ or ""
    match = re.search(rf"^ +{re.escape(room)}  .*?: (.*(?:\n {{29}}.*)*)", doc, re.M)
    assert match is not None, room
    return set(WORDS.findall(re.sub(r"\(.*?\)", "", match[1])))


def modules(directory: Path) -> set[str]:
    files = {path.stem for path in directory.glob("*.py")}
    packages = {path.parent.name for path in directory.glob("*/__init__.py")}
    return (files | packages) - {"__init__", "__main__"}


def test_drawing_names_every_module_and_no_other() -> None:
    assert {room: drawn(room) for room in ROOMS} == {room: modules(TOP / room) for room in ROOMS}
    assert drawn("(root)") == modules(TOP) - set(ROOMS)


def test_drawing_and_contract_have_the_rooms_in_one_order() -> None:
    """From the top down; the words at the root are separate layers below them."""
    config = configparser.ConfigParser()
    config.read(TOP.parent / "setup.cfg")
    layers = config["importlinter:contract:rooms"]["layers"].split("\n")
    contract = [word for layer in layers for word in WORDS.findall(layer) if word in ROOMS]
    doc = vbackup.__doc__ or ""
    places = {room: re.search(rf"^ +{room}  ", doc, re.MULTILINE) for room in contract}
    assert sorted(contract, key=lambda room: match.start() if (match := places[room]) else -1) == contract
    assert sorted(contract) == ROOMS


@functools.cache
def module_files() -> dict[str, Path]:
    """Every module with code, by its name without ``vbackup.``: its path in the package, without __init__.py.

    A package with code is a module. A command's arguments and its handler are one: commands only parse.
    """
    found = {}
    for path in TOP.rglob("*.py"):
        rpath = path.relative_to(TOP).parent if path.name == "__init__.py" else path.relative_to(TOP).with_suffix("")
        if rpath.parts[:2] == ("cli", "commands") or rpath.parts == ("cli",) or not has_code(path):
            continue
        found[".".join(rpath.parts)] = rpath
    return found


def has_code(path: Path) -> bool:
    """True if the file has more than a docstring and assignments."""
    body = ast.parse(path.read_text()).body
    return any(not isinstance(statement, (ast.Expr, ast.Assign)) for statement in body)


def mirror_of(rpath: Path) -> Path:
    return UNIT / rpath.parent / f"test_{rpath.name}.py"


def test_every_module_has_its_test_file_or_is_tested_elsewhere() -> None:
    missing = {name for name, rpath in module_files().items() if not mirror_of(rpath).exists()}
    assert missing == ELSEWHERE.keys()


@pytest.mark.parametrize(("module", "file"), ELSEWHERE.items())
def test_file_that_tests_a_module_of_another_name_mentions_it(module: str, file: str) -> None:
    name = module.rpartition(".")[2]
    assert module in module_files()
    assert name in WORDS.findall((TESTS / file).read_text())


def test_every_test_file_belongs_to_a_module_of_its_room() -> None:
    belonging = {mirror_of(rpath) for rpath in module_files().values()}
    others = {path.relative_to(UNIT).as_posix() for path in UNIT.rglob("test_*.py") if path not in belonging}
    assert others == NO_MODULE.keys()


def test_every_command_is_tested_with_its_handler() -> None:
    commands = modules(TOP / "cli" / "commands")
    assert commands == modules(TOP / "cli" / "handlers")
    tested = {path.stem.removeprefix("test_") for path in (UNIT / "cli" / "handlers").glob("test_*.py")}
    elsewhere = {name.rpartition(".")[2] for name in ELSEWHERE if name.startswith("cli.handlers.")}
    assert commands == tested | elsewhere
