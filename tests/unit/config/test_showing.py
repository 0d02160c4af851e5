"""Each key that holds is shown with its place, and each that nobody has set with its default."""

from __future__ import annotations

from pathlib import Path

import tomllib

from tests.unit.config.conftest import Load
from tests.unit.config.test_loading import WHOLE
from vbackup.config import showing
from vbackup.config.showing import Shown


def shown_of(shown: tuple[Shown, ...], *path: str) -> Shown:
    (one,) = [one for one in shown if (*one.table, one.name) == path]
    return one


def test_every_key_of_the_files_is_shown_with_its_place(load: Load, tmp_path: Path) -> None:
    config = load(WHOLE).config
    shown = showing.effective(config)
    places = {".".join((*one.table, one.name)): one.place for one in shown if one.place is not None}
    assert places == config.origins
    lines = WHOLE.split("\n")
    for one in shown:
        assert (one.value is None) == (one.place is None) == (one.default is not None)
        if one.place is not None:
            assert one.name in lines[one.place.line - 1]
            assert one.origin == f"{tmp_path}/vbackup.toml:{one.place.line}"
    assert shown_of(shown, "job", "nightly", "backup", "freeze-limit").value == "30s"


def test_defaults_of_options_are_shown(load: Load) -> None:
    shown = showing.effective(load(WHOLE).config)
    level = shown_of(shown, "job", "nightly", "backup", "level")
    assert (level.value, level.default, level.origin) == (None, "auto", "default")
    assert shown_of(shown, "job", "nightly", "backup", "group").default == "false"
    # The backup of a job without options, too; but no step that it does not have.
    assert shown_of(shown, "job", "by-hand", "backup", "parallel").default == "4"
    assert not [one for one in shown if one.table == ("job", "by-hand", "prune")]
    assert shown_of(shown, "job", "by-hand", "domains").default == "all"
    assert (
        shown_of(shown, "job", "nightly", "max-age").default
        == "5d13h40m (the longest time between two runs, and two hours)"
    )


def test_text_is_toml_with_defaults_as_comments(load: Load) -> None:
    config = load(WHOLE).config
    shown = showing.effective(config)
    for with_origin in (False, True):
        text = showing.text(shown, with_origin=with_origin)
        tables = tomllib.loads(text)
        assert tables["job"]["nightly"]["backup"]["compress"] == "auto"
        assert tables["repository"]["main"] == {"path": "/srv/backup"}
        assert ("# level: auto (default)" if with_origin else "# level: auto") in text.split("\n")
    assert f'path = "/srv/backup"  # {config.paths[0]}:2' in showing.text(shown, with_origin=True)


def test_nothing_is_shown_of_nothing() -> None:
    assert showing.text((), with_origin=True) == ""
