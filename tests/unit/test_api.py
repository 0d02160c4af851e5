"""The library's names load when they are asked for, and importing it does nothing."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_start import DOORS, HEAVY
from vbackup import api, errors
from vbackup.api.attached import Attached
from vbackup.api.backups import Backups
from vbackup.api.contents import Contents
from vbackup.api.copies import Copies
from vbackup.api.records import Records
from vbackup.api.restores import Restores
from vbackup.api.sessions import Sessions
from vbackup.api.streams import Streams
from vbackup.api.upkeep import Upkeep

PARTS = (Attached, Backups, Contents, Copies, Records, Restores, Sessions, Streams, Upkeep)


def after(source: str) -> Any:
    """What a new Python prints, as a Python value."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    argv = [sys.executable, "-c", source]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""
    return ast.literal_eval(done.stdout)


def imports_for_type_checkers() -> dict[str, tuple[str, str]]:
    """By the name that it has here: the module and the name there, from the imports that type checkers read."""
    tree = ast.parse(Path(api.__file__).read_text())
    [block] = [one for one in tree.body if isinstance(one, ast.If)]
    return {
        alias.asname or alias.name: (str(one.module), alias.name)
        for one in block.body
        if isinstance(one, ast.ImportFrom)
        for alias in one.names
    }


def test_names_are_the_same_for_readers_type_checkers_and_python() -> None:
    assert imports_for_type_checkers() == api._MODULES
    assert sorted(api.__all__) == sorted(api._MODULES)


@pytest.mark.parametrize("name", sorted(api.__all__))
def test_every_name_is_what_it_says(name: str) -> None:
    module, there = api._MODULES[name]
    found = getattr(api, name)
    assert found is getattr(sys.modules[module], there)
    assert name in dir(api)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"'vbackup.api' has no attribute 'nothing'"):
        _ = api.nothing


def test_import_has_no_effect_and_costs_little() -> None:
    """No thread, no handler of a signal, no variable of the environment; and nothing that another command imports."""
    state = "threading.active_count(), signal.getsignal(signal.SIGINT), os.environ.copy()"
    same, modules = after(
        f"import os, signal, sys, threading; before = [{state}]\n"
        f"import vbackup.api; vbackup.api.connect\nprint((before == [{state}], set(sys.modules)))"
    )
    assert same
    assert not modules & (HEAVY | DOORS | {"vbackup.repository.repository", "argparse"})
    assert not [one for one in modules if one.startswith("vbackup.cli")]


def test_reading_a_repository_imports_no_libvirt(filled: Path) -> None:
    made, modules = after(
        "import sys, vbackup.api\n"
        f"with vbackup.api.connect(repository={str(filled)!r}) as vb:\n"
        "    made = [len(one.backups) for one in vb.records()]\n"
        "print((made, set(sys.modules)))"
    )
    assert made == [2]
    assert not modules & (HEAVY | DOORS)


def calls() -> list[tuple[str, Any]]:
    return [
        (f"{part.__name__}.{name}", call)
        for part in PARTS
        for name, call in vars(part).items()
        if inspect.isfunction(call) and not name.startswith("_")
    ]


@pytest.mark.parametrize(("name", "call"), calls())
def test_docstring_says_what_is_raised_and_only_what_exists(name: str, call: Any) -> None:
    doc = inspect.getdoc(call) or ""
    raised = set(re.findall(r"\b[A-Z]\w*Error\b", doc))
    assert raised or "Raises what" in doc, name
    assert {one for one in raised if not issubclass(getattr(errors, one), errors.VbackupError)} == set()


def test_calls_take_a_reporter_and_a_stop_where_they_work() -> None:
    """Those that only look something up, or attach, have nothing to report, or end by themselves."""
    without = {name for name, call in calls() if "stop" not in inspect.signature(call).parameters}
    assert without == {
        *("Attached.attach", "Attached.attach_socket", "Attached.attach_images", "Attached.bitmaps"),
        *("Backups.is_one", "Backups.select", "Backups.select_all", "Backups.set_speed", "Backups.interrupted_uuid_of"),
        *("Records.domains", "Records.records", "Records.record", "Records.owner_of"),
        *("Restores.abort_live", "Upkeep.adopt"),
        *("Sessions.session_changes", "Sessions.sessions", "Sessions.tracker", "Sessions.trackers"),
    }
