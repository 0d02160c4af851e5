"""Backups through a pipe: what comes back is what the disks held at that moment, however the chain was made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.daemon import Daemon
from tests.lab import HEEDING_SIGNALS, DiskSpec, Lab, Machine, References, compare, domain_xml
from tests.streams import descriptor

if TYPE_CHECKING:
    from tests.conftest import Command


class Streams:
    """Streams of one machine, each in a file, and the references of each."""

    def __init__(self, lab: Lab, command: Command, tmp_path: Path) -> None:
        self.lab, self.command, self.tmp_path = lab, command, tmp_path
        self.stage = tmp_path / "stage"
        specs = [
            DiskSpec(tmp_path / "vda.qcow2", size="8M"),
            DiskSpec(tmp_path / "vdb.raw", "vdb", format="raw", size="8M"),
        ]
        self.machine: Machine = lab.boot("web", specs)
        self.machine.write("vda", "write -P 1 0 2M")
        self.machine.write("vdb", "write -P 2 1M 2M")
        self.references: dict[str, dict[str, Path]] = {}

    def back_up(self, job: str, level: str = "auto", *, status: int = 0) -> Path:
        """Make a stream while QEMU makes references."""
        path = self.tmp_path / f"{job}.tar"
        references = References(self.tmp_path / f"references-{job}")
        with pytest.MonkeyPatch.context() as patch, references.taken(patch), descriptor(1, path):
            self.command(*self.words("backup", job), "--level", level, "--log", self.tmp_path / "log", status=status)
        self.references[job] = references.finish(self.machine)
        return path

    def words(self, what: str, job: str) -> list[str | Path]:
        return ["-c", self.lab.uri, "stream", what, "web", "--job", job, "--stage", self.stage]

    def end(self, what: str, job: str) -> str:
        return self.command(*self.words(what, job)).stdout

    def compare(self, job: str, document: dict[str, Any], output: Path) -> None:
        for disk in document["disks"]:
            compare(output / disk["file"], self.references[job][disk["node_name"]])


@pytest.fixture
def streams(lab: Lab, command: Command, tmp_path: Path) -> Streams:
    return Streams(lab, command, tmp_path)


def test_chain_of_streams_comes_back_byte_for_byte(streams: Streams, command: Command, repository: Path) -> None:
    """A full, an incremental, one that is undone, a differential, and an incremental on that."""
    machine, kept = streams.machine, []
    for job, level in enumerate(["full", "incremental", "auto", "differential", "incremental"], start=1):
        machine.write("vda", f"write -P {10 + job} {job * 256}k 64k", "write -z 0 64k")
        machine.write("vdb", f"write -P {20 + job} {job * 512}k 128k")
        path = streams.back_up(str(job), level)
        if job == 3:
            assert "was undone" in streams.end("abort", "3")
        else:
            assert "was committed" in streams.end("commit", str(job))
            kept.append((str(job), path))
    documents = {}
    for job_name, path in kept:
        with descriptor(0, path):
            documents[job_name] = command("stream", "restore", "-r", repository, "--domain", "web", "--json").document
    backups = {job_name: document["backups"][0] for job_name, document in documents.items()}
    assert [one["level"] for one in backups.values()] == ["full", "incremental", "differential", "incremental"]
    assert backups["5"]["parent"] == backups["4"]["id"]
    assert backups["4"]["parent"] == backups["1"]["id"]
    command("verify", "web", "-r", repository)
    for job_name, one in backups.items():
        output = streams.tmp_path / f"out-{job_name}"
        command("-q", "restore", "web", "-r", repository, "--backup", one["id"], "--output", output)
        streams.compare(job_name, one, output)
    # Without the incremental that a director does not need: the full and the differential are whole disks.
    together = streams.tmp_path / "together"
    together.write_bytes(b"".join(path.read_bytes() for job_name, path in kept if job_name in "14"))
    with descriptor(0, together):
        command("-q", "stream", "restore", streams.tmp_path / "whole")
    streams.compare("4", backups["4"], streams.tmp_path / "whole")
    bitmaps = [name for of_node in machine.bitmaps().values() for name in of_node if "-end-" not in name]
    assert len(bitmaps) <= 2 * 3


def test_chain_goes_on_while_the_domain_is_off(lab: Lab, command: Command, tmp_path: Path) -> None:
    spec = DiskSpec(tmp_path / "vda.qcow2", size="8M")
    machine = lab.boot("web", [spec])
    machine.write("vda", "write -P 1 0 2M")
    words = ("web", "--stage", tmp_path / "stage", "--job")

    def back_up(job: str, level: str) -> None:
        with descriptor(1, tmp_path / f"{job}.tar"):
            command("-c", lab.uri, "-q", "stream", "backup", *words, job, "--level", level)

    back_up("1", "full")
    command("stream", "commit", *words, "1")
    machine.destroy()
    for job, pattern in (("2", 3), ("3", 4)):
        subprocess.run(
            ["qemu-io", "-c", f"write -P {pattern} {pattern}M 64k", spec.path], check=True, capture_output=True
        )
        back_up(job, "incremental")
        command("-c", lab.uri, "stream", "abort" if job == "2" else "commit", *words, job)
    together = tmp_path / "together"
    together.write_bytes((tmp_path / "1.tar").read_bytes() + (tmp_path / "3.tar").read_bytes())
    with descriptor(0, together):
        command("-q", "stream", "restore", tmp_path / "out")
    compare(tmp_path / "out" / "vda.qcow2", spec.path)


def test_stream_whose_reader_goes_leaves_qemu_as_it_was(streams: Streams, command: Command) -> None:
    streams.back_up("1", "full")
    streams.end("commit", "1")
    before = streams.machine.state()
    streams.machine.write("vda", "write -P 9 3M 1M")
    reading, writing = os.pipe()
    os.close(reading)
    with descriptor(1, writing):
        command(*streams.words("backup", "2"), status=128 + signal.SIGPIPE)
    os.close(writing)
    assert streams.machine.state() == before
    assert "No backup of job 2 is left" in streams.end("abort", "2")
    streams.back_up("3", "incremental")


def test_killed_at_the_pipe_it_is_taken_over_by_the_next(daemon: Daemon, images: Path, tmp_path: Path) -> None:
    """SIGKILL while nobody reads: the bitmaps of the dead run go, its base stays."""
    spec = DiskSpec(images / "vda.qcow2", size="8M")
    spec.create()
    machine = daemon.start(domain_xml("web", [spec.xml()]))
    machine.write("vda", "write -P 1 0 4M")
    argv = [sys.executable, "-m", "vbackup", "-c", daemon.uri, "stream"]
    stage = ["web", "--stage", str(tmp_path / "stage"), "--job"]

    def back_up(job: str, level: str) -> None:
        with (tmp_path / f"{job}.tar").open("wb") as file:
            subprocess.run([*argv, "backup", *stage, job, "--level", level], stdout=file, check=True)

    back_up("1", "full")
    subprocess.run([*argv, "commit", *stage, "1"], check=True)
    before = machine.bitmaps()
    machine.write("vda", "write -P 2 1M 1M")
    backup = [*HEEDING_SIGNALS, *argv, "backup", *stage, "2"]
    with subprocess.Popen(backup, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.read(512)
        assert [path.name[-20:] for path in (tmp_path / "stage").glob("*/*.partial")] == ["-incremental.partial"]
        process.kill()
    assert len(machine.bitmaps()["libvirt-1-format"]) > len(before["libvirt-1-format"])
    back_up("3", "incremental")
    subprocess.run([*argv, "abort", *stage, "3"], check=True)
    assert machine.bitmaps() == before
    done = subprocess.run([*argv, "commit", *stage, "2"], capture_output=True, text=True, check=False)
    assert (done.returncode, "does not wait for a commit" in done.stderr) == (6, True)


def test_signal_ends_a_stream_that_nobody_reads(daemon: Daemon, images: Path, tmp_path: Path) -> None:
    spec = DiskSpec(images / "vda.qcow2", size="8M")
    spec.create()
    machine = daemon.start(domain_xml("web", [spec.xml()]))
    machine.write("vda", "write -P 1 0 4M")
    before = machine.state()
    argv = [
        *HEEDING_SIGNALS,
        sys.executable,
        "-m",
        "vbackup",
        "-c",
        daemon.uri,
        "stream",
        "backup",
        "web",
        "--job",
        "1",
    ]
    with subprocess.Popen(
        [*argv, "--stage", str(tmp_path / "stage")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(512)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert machine.state() == before
