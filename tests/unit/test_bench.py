"""What the bench makes of its measurements: verdicts, tables, plots. That it measures is seen in end_to_end."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from tests.bench import plot, report
from tests.bench.__main__ import RESULTS
from tests.bench.goals import verdicts
from tests.bench.measuring import median, percentile
from tests.bench.works import WORKS


def sample(wall_s: float, **members: float) -> dict[str, float]:
    plain = {"stored_s": wall_s, "cpu_s": 0.1, "peak_mib": 50.0, "qemu_mib": 0.0, "written_mib": 1.0}
    return {"wall_s": wall_s, **plain, **members}


def case(series: str, contender: str, *walls_s: float, x: float | None = None, **members: float) -> dict[str, Any]:
    samples = [sample(wall_s, **members) for wall_s in walls_s]
    return {"series": series, "contender": contender, "x": x, "unit": "", "verified": None, "samples": samples}


def result(*cases: dict[str, Any], **figures: Any) -> dict[str, Any]:
    return {
        "date": "2026-11-25",
        "versions": {"QEMU": "7.2.0"},
        "machine": {"processors": "2"},
        "cases": list(cases),
        "figures": figures,
        "skipped": [],
    }


def fulls(ours_s: float) -> dict[str, Any]:
    others = {"qemu-img convert -W -m 8": 1.0, "virtnbdbackup": 3.0, "virsh backup-begin (push)": 2.8}
    cases = [case("full", name, wall_s) for name, wall_s in others.items()]
    return result(*cases, case("full", "vbackup", ours_s, 9.0, 0.1), phases={"QEMU copies": ours_s - 0.3})


def test_goal_is_met_by_the_medians() -> None:
    verdict = next(one for one in verdicts({"full": fulls(1.2)}) if one.work == "full")
    assert verdict.met is True
    assert "QEMU copies in 0.90 x qemu-img convert" in verdict.measured
    assert "2.5 x as fast as virtnbdbackup" in verdict.measured


def test_missed_goal_says_what_was_measured_and_where_the_time_went() -> None:
    verdict = next(one for one in verdicts({"full": fulls(1.35)}) if one.work == "full")
    assert verdict.met is False
    assert verdict.why == "QEMU copies 1.05 s"


def verifying(restore_s: float) -> dict[str, Any]:
    convert = "qemu-img convert -W -m 8"
    cases = [case("verify, full", "vbackup", 1.0), case("verify, full", "sha256sum", 2.5)]
    for series in ("full", "chain of 200"):
        cases.append(case(f"restore, {series}", "vbackup", restore_s))
        cases.append(case(f"restore, {series}", convert, 1.0, stored_s=2.0))
    return result(*cases, case("verify, 64 MiB in 1 TiB", "vbackup", 0.5))


@pytest.mark.parametrize(("restore_s", "met"), [(2.3, True), (2.5, False)])
def test_restore_is_compared_with_what_is_stored(restore_s: float, met: bool) -> None:
    verdict = next(one for one in verdicts({"verify": verifying(restore_s)}) if one.work == "verify")
    assert verdict.met is met
    assert f"{restore_s / 2:.2f} x convert and sync ({restore_s:.2f} x convert alone)" in verdict.measured
    assert "2.5 x as fast as sha256sum" in verdict.measured


def test_goal_without_its_measures_is_neither_met_nor_missed() -> None:
    found = verdicts({"full": result(case("full", "vbackup", 1.0))})
    assert {one.met for one in found} == {None}
    assert all(one.measured.startswith("not measured: ") for one in found)


def test_every_goal_is_about_a_work() -> None:
    assert {one.work for one in verdicts({})} <= {work.name for work in WORKS}


def test_guests_worst_write_counts_and_not_the_median() -> None:
    def moments(worst_ms: float) -> bool | None:
        one = {"transaction_median_ms": 60, "longest_write_median_ms": 10, "longest_write_worst_ms": worst_ms}
        found = verdicts({"moment": result(**{"2": one, "8": one, "27": one})})
        return next(one.met for one in found if one.work == "moment")

    assert moments(49.9) is True
    assert moments(50.0) is False


@pytest.mark.parametrize(("far_s", "met"), [(1.75, True), (1.77, False)])
def test_remote_increment_is_compared_with_the_local_one(far_s: float, met: bool) -> None:
    changed = "incremental, 100 MiB in 1600 extents"
    cases = [case("full through SSH", "ssh cat", 8.0), case("full through SSH", "vbackup", 10.0)]
    others = [case(changed, "vbackup of a domain on this host", 0.76), case(changed, "vbackup, 20 ms away", far_s + 1)]
    found = verdicts({"remote": result(*cases, case(changed, "vbackup", far_s), *others)})
    [verdict] = [one for one in found if one.work == "remote"]
    assert verdict.met is met
    assert verdict.measured.endswith("as long as 50 more round trips")
    assert verdict.measured.startswith("full at 0.80 x the speed of ssh cat; incremental ")


@pytest.mark.parametrize(("p99_ms", "worst_ms", "met"), [(9.0, 100.0, True), (9.1, 100.0, False), (9.0, 100.1, False)])
def test_guests_writes_are_judged_by_p99_and_by_the_longest(p99_ms: float, worst_ms: float, met: bool) -> None:
    quick = [{"p99_ms": 3.0, "worst_ms": 300.0}]
    names = ("no backup", "vbackup, no delay", "vbackup, 20 ms away")
    figures = {**dict.fromkeys(names, quick), "vbackup, 20 ms away": [{"p99_ms": 3.0, "worst_ms": 50.0}]}
    dead = [{"p99_ms": p99_ms, "worst_ms": 20.0}, {"p99_ms": p99_ms, "worst_ms": worst_ms}]
    found = verdicts({"remote-latency": result(**figures, **{"vbackup, the link dies": dead})})
    [verdict] = [one for one in found if one.work == "remote-latency"]
    assert verdict.met is met


@pytest.mark.parametrize(("run_s", "met"), [(1.29, True), (1.31, False)])
def test_run_is_compared_with_its_steps(run_s: float, met: bool) -> None:
    cases = [case("run of a job", "run of a job", run_s), case("run of a job", "its steps by hand", 1.0)]
    figures = {"page_bytes": 1, "Cockpit page with data, s": [2.5, 1.9, 1.8]}
    found = verdicts({"daily": result(*cases, **figures)})
    run, cockpit = (one for one in found if one.work == "daily" and one.met is not None)
    assert run.met is met
    assert cockpit.measured == "first row painted after 1.90 s"


@pytest.mark.parametrize(("sealed_s", "reads", "met"), [(1.3, 0, True), (1.4, 0, False), (1.3, 1, False)])
def test_processor_time_of_age_is_the_programs_own(sealed_s: float, reads: int, met: bool) -> None:
    cases = [
        case("2 GiB", "rclone copy", 9.0),
        case("2 GiB", "vbackup", 10.0, cpu_s=30.0, program_cpu_s=1.0),
        case("2 GiB", "vbackup --recipient", 20.0, cpu_s=60.0, program_cpu_s=sealed_s),
        case("one new point", "vbackup", 1.9, x=30),
    ]
    found = verdicts({"copies": result(*cases, **{"old images": {"opened": 0, "reads": reads}})})
    [verdict] = [one for one in found if one.work == "copies"]
    assert verdict.met is met


def test_readme_gets_the_figures_that_were_measured_between_its_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# Name\n\n{report.BEGIN}\nold\n{report.END}\n\nmore\n")
    for _ in range(2):
        report.into_readme(readme, {"full": fulls(1.2)})
    text = readme.read_text()
    assert text.startswith(f"# Name\n\n{report.BEGIN}\nMeasured 2026-11-25 with QEMU 7.2.0; on 2.\n")
    assert text.endswith(f"\n{report.END}\n\nmore\n")
    assert "old" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert len(rows) == 1
    assert "| 1.2 s | `qemu-img convert` 1.0 s, `virsh backup-begin` 2.8 s, virtnbdbackup 3.0 s |" in rows[0]


def test_readme_has_four_figures() -> None:
    rows = report.figure_rows(report.load(RESULTS))
    assert len(rows) == 4
    readme = (RESULTS.parents[2] / "README.md").read_text()
    assert all(row in readme for row in rows)


def test_text_beside_the_goals_stays(tmp_path: Path) -> None:
    (tmp_path / "GOALS.md").write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write(tmp_path, {"full": fulls(1.2)})
    text = (tmp_path / "GOALS.md").read_text()
    assert text.startswith(f"before\n{report.BEGIN}\nMeasured")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text
    assert "| met |" in text


def test_readme_without_marks_is_refused_and_left_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# Name\n")
    with pytest.raises(ValueError, match="has no <!-- bench -->"):
        report.into_readme(readme, {"full": fulls(1.2)})
    assert readme.read_text() == "# Name\n"


def test_page_and_plots_come_out_of_what_was_saved(tmp_path: Path) -> None:
    growth = [case("nothing changed", "vbackup", 0.2 * x, x=x) for x in (1, 9, 27)]
    report.save(tmp_path, "full", fulls(1.2))
    report.save(tmp_path, "nothing", result(*growth, largest=2))
    report.write(tmp_path, report.load(tmp_path))
    page = (tmp_path / "RESULTS.md").read_text()
    assert "| full | virtnbdbackup | 1 | 3.00 (3.00, 3.00) | 2.50 |" in page
    assert {path.name for path in tmp_path.glob("*.svg")} == {"full.svg", "growth-time.svg", "growth-memory.svg"}
    for path in tmp_path.glob("*.svg"):
        ET.parse(path)


def test_names_in_a_plot_are_escaped_and_nothing_is_divided_by_zero() -> None:
    for text in (
        plot.bars("<a> & b", {"x<y": 0.0, "vbackup": 0.0}, unit="s", ours="vbackup"),
        plot.panels("t", {"one": {"vbackup": [(0, 0.0), (0, 0.0)]}}),
    ):
        ET.fromstring(text)


def test_median_and_percentile() -> None:
    assert median([sample(3), sample(1), sample(2)], "wall_s") == 2
    assert percentile(list(range(1, 101)), 99) == 99
    assert percentile([5.0], 99) == 5.0
