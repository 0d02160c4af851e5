"""``make install``: all may run it whoever installs it, and a hypervisor gets nothing that only the tests need."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]


def test_installed_command_is_everybody_s_whatever_the_umask(tmp_path: Path) -> None:
    prefix = tmp_path / "with space"
    made = subprocess.run(
        # This Python has all that is required, so nothing comes over the network.
        ["make", "install", f"PREFIX={prefix}", f"PYTHON={sys.executable}", "INSTALL_PACKAGES=true"],
        cwd=TOP,
        umask=0o077,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    for path in prefix.rglob("*"):
        wanted = 0o755 if path.is_dir() or path.parent.name in ("bin", "examples") or path.name == "qemu" else 0o644
        assert path.stat().st_mode & 0o777 == wanted, path
        assert not path.is_symlink(), path
    assert {path.name for path in (prefix / "lib" / "vbackup").iterdir()} == {"vbackup"}
    assert (prefix / "share" / "vbackup" / "examples" / "webhook").exists()
    pages = {path.stem for path in (TOP / "man").iterdir()}
    assert {path.name for path in (prefix / "share" / "man").rglob("vbackup*")} == pages
    environment = {**os.environ, "PYTHONPATH": os.fspath(tmp_path)}  # which -I ignores
    for arguments, said in (
        (["--version"], "vbackup "),
        (["hooks", "status", "--root", str(tmp_path)], "50-vbackup"),
        (["schema", "backup"], '"vbackup.backup/1"'),
    ):
        argv = [sys.executable, "-I", os.fspath(prefix / "bin" / "vbackup"), *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path)
        assert said in done.stdout
    source = [
        sys.executable,
        "-I",
        "-c",
        f"import sys; sys.path.insert(0, {str(prefix / 'lib' / 'vbackup')!r});import vbackup; print(vbackup.__file__)",
    ]
    done = subprocess.run(source, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{prefix}/lib/vbackup/vbackup/__init__.py"


def test_hypervisor_gets_no_compiler_no_kernel_and_no_tests() -> None:
    def packages(name: str) -> set[str]:
        lines = (TOP / ".ci" / name).read_text().splitlines()
        return {word for line in lines if (word := line.partition("#")[0].strip().rstrip("?"))}

    run_time = packages("run-time-packages")
    assert {"python3-libvirt", "python3-lxml", "qemu-utils"} <= run_time
    unwanted = re.compile(r"gcc|g\+\+|.*-dev|linux-.*|qemu-system.*|libvirt-daemon.*|.*pytest.*|mandoc|busybox.*")
    assert not [name for name in run_time if unwanted.fullmatch(name)]
    assert [name for name in packages("packages") if unwanted.fullmatch(name)]


@pytest.mark.parametrize(("options", "missing"), [((), 0), (("-S",), 5)], ids=["all there", "nothing there"])
def test_only_what_is_missing_comes_from_elsewhere(options: tuple[str, ...], missing: int) -> None:
    argv = [sys.executable, "-I", *options, os.fspath(TOP / ".ci" / "missing-requirements")]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    requirements = done.stdout.split()
    assert len(requirements) == missing
    assert all(re.fullmatch(r"[a-z.-]+>=[0-9.]+", one) for one in requirements)


def test_extras_are_asked_for_by_name() -> None:
    script = os.fspath(TOP / ".ci" / "missing-requirements")
    done = subprocess.run([sys.executable, "-IS", script, "blake3"], capture_output=True, text=True, check=True)
    assert "blake3>=0.3" in done.stdout.split()
    unknown = subprocess.run([sys.executable, "-IS", script, "nosuch"], capture_output=True, text=True, check=False)
    assert (unknown.returncode, "no extra 'nosuch'" in unknown.stderr) == (1, True)
