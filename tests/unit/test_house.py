"""The drawing in vbackup/__init__.py is the package as it is: every room, every module."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import vbackup

TOP = Path(vbackup.__file__).parent
ROOMS = sorted(path.parent.name for path in TOP.glob("*/__init__.py"))
WORDS = re.compile(r"\w+")


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
    """From the top down; the words at the root are layers of their own below them."""
    config = configparser.ConfigParser()
    config.read(TOP.parent / "setup.cfg")
    layers = config["importlinter:contract:rooms"]["layers"].split("\n")
    contract = [word for layer in layers for word in WORDS.findall(layer) if word in ROOMS]
    doc = vbackup.__doc__ or ""
    assert sorted(contract, key=lambda room: doc.index(f" {room}  ")) == contract
    assert sorted(contract) == ROOMS
