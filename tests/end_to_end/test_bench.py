"""The bench runs: tiny, with nothing but vbackup, cp and qemu-img. What it measures then means nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests import hosts, weed
from tests.bench import isolation, report
from tests.bench.works import WORKS

TOP = Path(__file__).resolve().parents[2]

if _reason := isolation.reason_not_to_run():
    pytest.skip(_reason, allow_module_level=True)


def bench(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    places = ["--output", str(tmp_path / "results"), "--directory", str(tmp_path / "place")]
    argv = [sys.executable, "-m", "tests.bench", "--smoke", *places, *arguments]
    return subprocess.Popen(argv, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.long
def test_smoke_run_writes_results_and_leaves_nothing(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    with bench(tmp_path, "--readme", str(readme)) as process:
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    documents = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "results").glob("*.json")}
    assert {"full", "incremental"} < set(documents) == {work.name for work in WORKS if work.in_smoke}
    for document in documents.values():
        assert document["schema"] == "vbackup.bench/1"
        assert all(sample["wall_s"] > 0 for case in document["cases"] for sample in case["samples"])
    contents = {
        (case["series"], case["contender"]): case["verified"] for one in documents.values() for case in one["cases"]
    }
    for contender in ("cp", "qemu-img convert -W -m 8", "vbackup"):
        assert contents["full", contender] == "identical"
    assert contents["incremental", "vbackup"] == "identical"
    if hosts.reason_not_to_start() is None:
        for contender in ("ssh cat", "vbackup"):
            assert contents["full through SSH", contender] == "identical"
    if weed.reason_not_to_start() is None:
        for contender in ("vbackup", "vbackup --recipient"):
            assert contents["2 GiB", contender] == "identical"
        assert documents["copies"]["figures"]["old images"] == {"opened": 0, "reads": 0}
    assert documents["full"]["figures"]["phases"]["QEMU copies"] > 0
    page = (tmp_path / "results" / "RESULTS.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert "| goal |" in (tmp_path / "results" / "GOALS.md").read_text()
    for plot in (tmp_path / "results").glob("*.svg"):
        assert ET.parse(plot).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    text = readme.read_text()
    assert text.startswith(f"before\n{report.BEGIN}")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text
    assert list((tmp_path / "place").iterdir()) == []


def test_bench_that_is_ended_leaves_nothing(tmp_path: Path) -> None:
    with bench(tmp_path, "--only", "full") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("full: ")
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert list((tmp_path / "place").iterdir()) == []
