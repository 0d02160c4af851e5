"""The results as files: JSON by work, one page of Markdown with all figures, plots, and the table of the README."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench import plot
from tests.bench.goals import Results, Verdict, verdicts
from tests.bench.measuring import median
from tests.bench.works import WORKS

SCHEMA = "vbackup.bench/1"
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"

_HEADINGS = (
    "",
    "contender",
    "runs",
    "wall s (min, max)",
    "ratio",
    "stored s",
    "CPU s",
    "peak MiB",
    "QEMU +MiB",
    "MiB written",
    "content",
)

#: What is plotted as growth: the series' title by work and name of the series.
_GROWTH = {
    ("nothing", "nothing changed"): "disks, nothing changed",
    ("size", "64 MiB changed in the first 8 GiB"): "GiB virtual size, 64 MiB changed in 8 GiB",
    ("size", "64 MiB changed in all of it"): "GiB virtual size, 64 MiB changed all over",
    ("changed", "changed data"): "MiB changed, 8 GiB disk",
    ("bitmaps", "other bitmaps"): "other bitmaps, 4 MiB changed",
    ("domains", "domains"): "domains, 1 MiB changed in each",
    ("chain", "next incremental"): "backups in the chain: next incremental",
    ("chain", "list"): "backups in the chain: list",
    ("chain", "plan (backup --dry-run)"): "backups in the chain: plan",
}


def save(directory: Path, name: str, document: Mapping[str, Any]) -> None:
    """The raw results of a work."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"schema": SCHEMA, **document}, indent=1, ensure_ascii=False)
    (directory / f"{name}.json").write_text(text + "\n")


def load(directory: Path) -> dict[str, dict[str, Any]]:
    """The results that are there, in the order of the works."""
    found = {}
    for work in WORKS:
        path = directory / f"{work.name}.json"
        if path.exists():
            found[work.name] = json.loads(path.read_text())
    return found


def write(directory: Path, results: Results) -> None:
    """RESULTS.md and the plots."""
    (directory / "RESULTS.md").write_text("\n".join(_page(results)) + "\n")
    for name, text in _plots(results).items():
        (directory / name).write_text(text)


def into_readme(path: Path, results: Results, directory: Path) -> None:
    """Put the table between the marks. Raises ValueError where they are not there."""
    text = path.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path} has no {BEGIN} ... {END}")
    place = directory.relative_to(path.parent) if directory.is_relative_to(path.parent) else directory
    table = "\n".join(["", *_header(results), "", *_goal_table(verdicts(results)), "", *_links(place, results), ""])
    path.write_text(f"{before}{BEGIN}{table}{END}{after}")


def _links(place: Path, results: Results) -> list[str]:
    plots = " ".join(f"![{name}]({place / name})" for name in _plots(results))
    return [plots, "", f"All figures are in [{place / 'RESULTS.md'}]({place / 'RESULTS.md'})."]


def _header(results: Results) -> list[str]:
    found = sorted({result["date"] for result in results.values()})
    some = next(iter(results.values()), {"versions": {}, "machine": {}})
    versions = ", ".join(f"{name} {version}" for name, version in some["versions"].items())
    machine = ", ".join(str(value) for value in some["machine"].values())
    dates = found[0] if len(found) == 1 else f"{found[0]} to {found[-1]}" if found else "never"
    return [f"Measured {dates} with {versions}; on {machine}."]


def _goal_table(made: Sequence[Verdict]) -> list[str]:
    words = {True: "met", False: "**missed**", None: "not measured"}
    lines = ["| goal | | measured |", "|---|---|---|"]
    for one in made:
        why = f" (one run: {one.why})" if one.why else ""
        lines.append(f"| {one.asked} | {words[one.met]} | {one.measured}{why} |")
    return lines


def _page(results: Results) -> list[str]:
    lines = ["# Results of `make bench`", "", *_header(results), "", "Written by the bench; see ../README.md.", ""]
    lines += ["## Goals", "", *_goal_table(verdicts(results)), ""]
    for work in WORKS:
        if work.name in results:
            lines += [f"## {work.title}", "", *_section(results[work.name]), ""]
    return lines[:-1]


def _section(result: Mapping[str, Any]) -> list[str]:
    lines = []
    cases = [case for case in result["cases"] if case["samples"]]
    if cases:
        lines += [
            _line(_HEADINGS),
            "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
        ]
        lines += [_row(case, _beside(case, cases)) for case in cases]
        lines.append("")
    for name, figures in result["figures"].items():
        lines.append(f"- {name}: {_figure(figures)}")
    for one in result["skipped"]:
        lines.append(f"- {one['what']}: left out, {one['reason']}")
    return lines


def _beside(case: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]) -> float:
    """vbackup's time in the same place: ratios are to it."""
    for one in cases:
        if (one["series"], one["x"]) == (case["series"], case["x"]) and one["contender"].startswith("vbackup"):
            return median(one["samples"], "wall_s")
    return 0.0


def _row(case: Mapping[str, Any], ours_s: float) -> str:
    samples = case["samples"]
    walls = [sample["wall_s"] for sample in samples]
    where = case["series"] if case["x"] is None else f"{case['series']}, {case['x']:g} {case['unit']}"
    ratio = f"{median(samples, 'wall_s') / ours_s:.2f}" if ours_s else ""
    cells = [
        where,
        case["contender"],
        str(len(samples)),
        f"{median(samples, 'wall_s'):.2f} ({min(walls):.2f}, {max(walls):.2f})",
        ratio,
        f"{median(samples, 'stored_s'):.2f}",
        f"{median(samples, 'cpu_s'):.2f}",
        *(f"{median(samples, member):.0f}" for member in ("peak_mib", "qemu_mib")),
        f"{median(samples, 'written_mib'):.1f}",
        case["verified"] or "",
    ]
    return _line(cells)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _figure(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_figure(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return "; ".join(_figure(inner) for inner in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plots(results: Results) -> dict[str, str]:
    made = {}
    for name, series in (("full", "full"), ("incremental", "incremental"), ("compressed", "full compressed")):
        cases = [one for one in results.get(name, {}).get("cases", []) if one["series"] == series and one["samples"]]
        if cases:
            values = {case["contender"]: median(case["samples"], "wall_s") for case in cases}
            title = next(work.title for work in WORKS if work.name == name)
            made[f"{name}.svg"] = plot.bars(title, values, unit="s", ours="vbackup")
    for file, member, unit in (("growth-time.svg", "wall_s", "Seconds"), ("growth-memory.svg", "peak_mib", "Peak MiB")):
        panels = {}
        for (work, series), title in _GROWTH.items():
            lines = _lines(results.get(work, {}).get("cases", []), series, member)
            if lines:
                panels[title] = lines
        if panels:
            made[file] = plot.panels(f"{unit} of vbackup's processes, by ...", panels)
    return made


def _lines(cases: Sequence[Mapping[str, Any]], series: str, member: str) -> dict[str, list[tuple[float, float]]]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for case in cases:
        if case["series"] == series and case["samples"] and case["contender"].startswith("vbackup"):
            lines.setdefault(case["contender"], []).append((case["x"], median(case["samples"], member)))
    return {name: points for name, points in lines.items() if len(points) > 1}
