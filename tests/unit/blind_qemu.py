"""A QEMU in memory that found the image of a disk corrupt: query-named-block-nodes fails as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.fake_qemu import FakeQemu
from vbackup.errors import QmpError


class BlindQemu(FakeQemu):
    """As QEMU 7.2 to 11.1 answer; ``eject`` begins it."""

    ejected: str | None = None  #: the node that has no driver any more
    ejected_too: frozenset[str] = frozenset()  #: others, which QEMU does not name
    has_filter_above = False  #: a job's filter is above that node
    answers: Mapping[str, QmpError] = {}  #: refusals of other queries

    def eject(self, alias: str) -> str:
        """Make the active layer of a device that node."""
        self.ejected = self.top(alias)
        return self.ejected

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, *, fd: int | None = None) -> Any:
        if command in self.answers:
            raise self.answers[command]
        if self.ejected is None:
            return super().execute(command, arguments, fd=fd)
        if command == "query-named-block-nodes":
            raise QmpError(command, "GenericError", f"Block device {self.ejected} is ejected")
        if command == "x-debug-query-block-graph":
            return self._graph()
        reply = super().execute(command, arguments, fd=fd)
        if command == "query-block":
            for device in reply:
                if device["inserted"]["node-name"] in {self.ejected, *self.ejected_too}:
                    del device["inserted"]
                else:
                    self._add_backing_images(device["inserted"])
        return reply

    def _graph(self) -> Any:
        names = sorted(self._nodes)
        nodes = [{"id": number, "type": "block-driver", "name": name} for number, name in enumerate(names)]
        edges = []
        if self.has_filter_above:
            nodes.append({"id": len(names), "type": "block-driver", "name": "#block1"})
            edges.append({"parent": len(names), "child": names.index(self.ejected or ""), "name": "file", "perm": []})
        return {"nodes": nodes, "edges": edges}

    def _add_backing_images(self, info: dict[str, Any]) -> None:
        """As query-block has them: only query-named-block-nodes is flat."""
        image = info["image"]
        for name in list(self._chain(info["node-name"]))[1:]:
            image["backing-image"] = self._node_info(self._nodes[name])["image"]
            image = image["backing-image"]
