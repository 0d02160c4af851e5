"""The results as files: JSON by work, RESULTS.md with all figures, GOALS.md, plots, and the README's four figures."""

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

#: The figures of the README: title, work (also the series), x, vbackup's contender, and the others by name.
_FIGURES: tuple[tuple[str, str, int | None, str, Mapping[str, str]], ...] = (
    (
        "Full backup, 2 GiB of data in an 8 GiB disk",
        "full",
        None,
        "vbackup",
        {
            "qemu-img convert -W -m 8": "`qemu-img convert`",
            "virsh backup-begin (push)": "`virsh backup-begin`",
            "virtnbdbackup": "virtnbdbackup",
        },
    ),
    (
        "Incremental backup, 100 MiB in 1600 places",
        "incremental",
        None,
        "vbackup",
        {"QEMU's job alone": "QEMU's job alone", "virtnbdbackup": "virtnbdbackup"},
    ),
    (
        "Incremental backups of 20 domains, 1 MiB changed in each",
        "domains",
        20,
        "vbackup, one command",
        {"virtnbdbackup, one after the other": "virtnbdbackup"},
    ),
)
_LATENCY = "The guest's writes while the repository takes 4 MB/s, 99th percentile"
_QUIET, _PLAIN, _FLEECING = "no backup", "vbackup", "vbackup --fleecing"


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
    """Write RESULTS.md and the plots, and the table in GOALS.md, whose other text stays."""
    (directory / "RESULTS.md").write_text("\n".join(_page(results)) + "\n")
    for name, text in _plots(results).items():
        (directory / name).write_text(text)
    goals = directory / "GOALS.md"
    if not goals.exists():
        goals.write_text(f"# Goals\n\n{BEGIN}\n{END}\n")
    _between_marks(goals, [*_header(results), "", *_goal_table(verdicts(results))])


def into_readme(path: Path, results: Results) -> None:
    """Put the four figures between the marks. Raises ValueError if the marks are missing."""
    _between_marks(path, [*_header(results), "", "| | vbackup | others |", "|---|---|---|", *figure_rows(results)])


def _between_marks(path: Path, lines: Sequence[str]) -> None:
    text = path.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path} has no {BEGIN} ... {END}")
    inner = "\n".join(["", *lines, ""])
    path.write_text(f"{before}{BEGIN}{inner}{END}{after}")


def figure_rows(results: Results) -> list[str]:
    """The four figures, without those that were not measured."""
    rows = []
    for title, work, x, ours, others in _FIGURES:
        cases = results.get(work, {}).get("cases", [])
        walls_s = {
            case["contender"]: median(case["samples"], "wall_s")
            for case in cases
            if case["series"] == work and case["x"] == x and case["samples"]
        }
        if ours in walls_s:
            beside = [f"{name} {walls_s[other]:.1f} s" for other, name in others.items() if other in walls_s]
            rows.append(f"| {title} | {walls_s[ours]:.1f} s | {', '.join(beside)} |")
    latency = results.get("latency", {}).get("figures", {})
    if {_QUIET, _PLAIN, _FLEECING} <= latency.keys():
        quiet_ms, plain_ms, fleecing_ms = (median(latency[name], "p99_ms") for name in (_QUIET, _PLAIN, _FLEECING))
        ours = f"{fleecing_ms:.0f} ms with `--fleecing`, {plain_ms:.0f} ms without"
        rows.append(f"| {_LATENCY} | {ours} | {quiet_ms:.0f} ms without a backup |")
    return rows


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
    lines = ["# Results of `make bench`", "", *_header(results), ""]
    lines += ["Written by the bench: [what the figures mean](../README.md), [the goals](GOALS.md).", ""]
    lines += [f"![{name}]({name})" for name in _plots(results)] + [""]
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
