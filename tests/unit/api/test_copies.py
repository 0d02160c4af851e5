"""Copies from a program: without a repository, a connection or a printed word."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trees import State, Tree, raw_digest
from vbackup import api
from vbackup.errors import ChainError, DomainNotFoundError


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path / "repo")
    state = State.of(256 * 1024, {0: (1, 1)})
    full = tree.backup({"vda": state})
    tree.backup({"vda": state.changed({1: (2, 3)})}, {"vda": full})
    return tree


def test_there_and_back(tree: Tree, tmp_path: Path) -> None:
    target = api.TargetPlace(str(tmp_path / "target"))
    with api.connect(repository=tree.repository.path) as vb:
        done = vb.copy(api.CopyRequest("web"), target)
    assert [point.id for point in done.points] == tree.ids()
    with api.open_copies(target, cache=tmp_path / "cache") as copies:
        assert copies.name == str(tmp_path / "target")
        assert copies.verify(api.CopyVerifyRequest("web")).damaged == ()
        assert copies.bring("web") > 0
        with api.connect(repository=copies.repository) as vb:
            restored = vb.restore(api.RestoreRequest("web", tmp_path / "out", api.Wanted(), checkpoint=False))
        assert raw_digest(restored.images["vda"]) == tree.states[tree.ids()[-1]]["vda"].digest
        request = api.CopyPruneRequest("web", api.Rules(), remove=(tree.ids()[-1],))
        with pytest.raises(ChainError, match="newest"):
            copies.prune(request)
        with pytest.raises(DomainNotFoundError):
            copies.bring("other")
        fetched = copies.fetch(api.FetchRequest(tmp_path / "new", ("web", tree.uuid)))
    assert fetched.points == {tree.uuid: tuple(tree.ids())}
