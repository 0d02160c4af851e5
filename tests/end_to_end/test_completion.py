"""TAB in real shells: bash and zsh on a terminal, and fish; each with the script that vbackup prints for it."""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.shells import Fish, Terminal
from vbackup.cli import completion_script, parser
from vbackup.cli.commands.completion import SHELLS

TOP = Path(__file__).parents[2]
#: Twice the goal, Python's start included, as other work on the machine costs processor time too: ``make bench``
#: measures the goal itself.
LIMIT_S = 0.2
IDS = ("20261101T000000Z-full", "20261102T000000Z-incremental", "20261103T000000Z-full")
#: Names that libvirt accepts, with every character that a shell has a use for.
NAMES = ('db\'s "x" `y`', "my $HOME & d", "a:b=c", "Ümlaut", "back\\slash", "*?[x]{a,b}", "!x;#~|<>()")

Ask = Callable[..., list[list[str]]]


def parsers(one: argparse.ArgumentParser, words: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield words, one
    for action in one._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from parsers(below, f"{words} {name}".strip())


PARSERS = dict(parsers(parser.build()))


def begin(words: str) -> str:
    """The line of a command, up to its next word."""
    return f"vbackup {words} " if words else "vbackup "


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program ``vbackup``, which is this one, and the scripts."""
    directory = tmp_path_factory.mktemp("completion")
    (directory / "bin").mkdir()
    program = directory / "bin" / "vbackup"
    source = f"import sys; sys.path.insert(0, {str(TOP)!r}); from vbackup.cli import command; command()"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -I -c {shlex.quote(source)} "$@"\n')
    program.chmod(0o755)
    for shell in SHELLS:
        (directory / shell).write_text(completion_script.make(shell))
    return directory


def environment(place: Path) -> dict[str, str]:
    return {"PATH": f"{place / 'bin'}:{os.environ['PATH']}", "LANG": "C.UTF-8"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Names and ids as a repository has them; its path has a space."""
    directory = tmp_path_factory.mktemp("kept") / "the repository"
    of_web = {one: ["vda"] for one in IDS[:2]}
    domains = [("web", of_web), *((name, {IDS[2]: ["vda", "vdb"]}) for name in NAMES)]
    for number, (name, backups) in enumerate(domains):
        domain = directory / f"{number:08x}-0000-4000-8000-000000000000"
        for one, devs in backups.items():
            (domain / one).mkdir(parents=True)
            manifest = {"disks": [{"dev": dev} for dev in devs]}
            (domain / one / "manifest.json").write_text(json.dumps(manifest))
        (domain / "domain.json").write_text(json.dumps({"names": ["old " + name, name], "hosts": [{"name": "hv1"}]}))
    return directory


@pytest.fixture(scope="module", params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def ask(shell: str, place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """What a shell has after each of these lines."""
    directory = tmp_path_factory.mktemp(shell)
    (directory / "sub dir").mkdir()
    (directory / "file").touch()
    if shell == "fish":
        yield Fish(place / shell, directory, environment(place)).offered
        return
    with Terminal(shell, place / shell, directory, environment(place)) as terminal:

        def each(*lines: str) -> list[list[str]]:
            answers = [terminal.offered(line) for line in lines]
            return [[_plain(word) for word in words] for words in answers] if shell == "bash" else answers

        yield each


def _plain(word: str) -> str:
    """The reply of bash has to have quotes already; zsh and fish set them later."""
    return "".join(shlex.split(word))


def test_every_command_is_offered(ask: Ask) -> None:
    below = {
        words: list(action.choices)
        for words, one in PARSERS.items()
        for action in one._actions
        if isinstance(action, argparse._SubParsersAction)
    }
    assert len(below) > 1
    for words, answer in zip(below, ask(*map(begin, below))):
        assert sorted(answer) == sorted(below[words]), words


def test_every_option_is_offered_and_none_that_is_refused(ask: Ask) -> None:
    """But for those that the help does not show."""
    for (words, one), answer in zip(PARSERS.items(), ask(*(f"{begin(words)}-" for words in PARSERS))):
        shown = [name for action in one._actions if action.help != argparse.SUPPRESS for name in action.option_strings]
        assert sorted(answer) == sorted(shown), words


def test_values_to_choose_from_are_offered(ask: Ask) -> None:
    actions = [
        (f"{begin(words)}{action.option_strings[-1]} ", sorted(map(str, action.choices)))
        for words, one in PARSERS.items()
        for action in one._actions
        if action.option_strings and action.choices and action.dest != "progress"
    ]
    assert len(actions) > 15
    for (line, choices), answer in zip(actions, ask(*(line for line, _ in actions))):
        assert sorted(answer) == choices, line


def test_what_excludes_an_option_that_was_given_is_not_offered(ask: Ask) -> None:
    cases: list[tuple[str, set[str]]] = []
    for words, one in PARSERS.items():
        for group in one._mutually_exclusive_groups:
            for action in group._group_actions:
                if action.option_strings:
                    excluded = {name for other in group._group_actions for name in other.option_strings}
                    value = "" if action.nargs == 0 else "x "
                    cases.append((f"{begin(words)}{action.option_strings[0]} {value}-", excluded))
    some = cases[::7]
    assert len(some) > 10
    for (line, excluded), answer in zip(some, ask(*(line for line, _ in some))):
        assert answer, line
        assert excluded.isdisjoint(answer), line


def test_option_is_offered_again_where_it_counts_again(ask: Ask) -> None:
    again, once, end = ask("vbackup backup --disk vda -", "vbackup backup --level=full --all -", "vbackup list -- -")
    assert "--disk" in again
    assert {"--level", "--all"}.isdisjoint(once)
    assert end == []


def test_names_of_the_repository_are_offered(ask: Ask, repository: Path) -> None:
    where = f"-r '{repository}'"
    cases: dict[str, Sequence[str]] = {
        f"vbackup show {where} ": ("web", *NAMES),
        f"vbackup {where} show w": ("web",),
        f"vbackup --repository='{repository}' show web ": (IDS[1], IDS[0]),
        f"vbackup show --domain web {where} ": (IDS[1], IDS[0]),
        f"vbackup diff {where} web {IDS[0]} ": (IDS[1],),
        f"vbackup protect {where} 'my $HOME & d' ": (IDS[2],),
        f"vbackup note {where} {IDS[2][:12]}": (IDS[2],),
        f"vbackup restore {where} web --disk ": ("vda",),
        f"vbackup restore {where} my\\ \\$HOME\\ \\&\\ d --disk vdb ": ("vda",),
        f"vbackup list {where} --host ": ("hv1",),
        f"vbackup prune {where} web --remove {IDS[0]} ": (IDS[1],),
        f"vbackup check {where} web m": ("my $HOME & d",),
        f"vbackup show --from '{repository}' we": ("web",),
        f"vbackup list {where} web ": (),
    }
    for (line, expected), answer in zip(cases.items(), ask(*cases)):
        if line.endswith("web ") and not expected:
            assert all(word.startswith("-") for word in answer), line
        else:
            assert sorted(answer) == sorted(expected), line


def test_names_of_the_configuration_are_offered(ask: Ask, tmp_path: Path) -> None:
    file = tmp_path / "my vbackup.toml"
    file.write_text("[job.nightly]\n[job.weekly]\n[target.offsite]\nurl = '/srv/copies'\n")
    begun = f"vbackup run --config '{file}'"
    lines = (f"{begun} ", f"{begun} nightly ", f"{begun} --copy-to off", f"vbackup run --config='{file}' w")
    assert ask(*lines) == [["nightly", "weekly"], ["weekly"], ["offsite"], ["weekly"]]


def test_words_of_the_shell_itself_are_understood(ask: Ask, shell: str, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(repository)
    lines = [f"vbackup list -r {tmp_path}/link w", f"vbackup list -r{tmp_path}/link w"]
    if shell != "bash":  # which does not tell of it
        lines.append(f"VBACKUP_REPOSITORY={tmp_path}/link vbackup list w")
    assert ask(*lines) == [["web"]] * len(lines)


def test_domains_of_libvirt_are_those_of_the_uri_on_the_line(ask: Ask, repository: Path) -> None:
    assert ask("vbackup backup -c test:///default ", "vbackup -c test:///default speed te") == [["test"], ["test"]]
    # Another host is not asked.
    line = f"vbackup backup -c qemu+ssh://root@hv.invalid/system -r '{repository}' w"
    assert ask(line) == [["web"]]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_line_after_tab_is_one_that_names_the_domain(shell: str, place: Path, repository: Path, tmp_path: Path) -> None:
    """Whatever characters it has, and within whatever quotes it was begun."""
    own = {**environment(place), "VBACKUP_REPOSITORY": str(repository)}
    with Terminal(shell, place / shell, tmp_path, own) as terminal:
        for name in NAMES:
            escaped = "".join(one if one.isalnum() else f"\\{one}" for one in name[:4])
            for beginning in (escaped, f"'{name[0]}", f'"{name[0]}'):
                if beginning == '"!':  # the shells' history: no word can begin so
                    continue
                line = terminal.typed(f"vbackup show {beginning}")
                # The shell itself says which words that is.
                said = subprocess.run(
                    [shell, "-c", f"set -f; vbackup() {{ printf '%s\\0' \"$@\"; }}; {line}"],
                    capture_output=True,
                    text=True,
                    check=True,
                    env={**own, "HOME": "/home/me"},
                )
                assert said.stdout.split("\0")[:-1] == ["show", name], (beginning, line)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_directories_are_completed_where_one_is_wanted(shell: str, place: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept-as-file").touch()
    with Terminal(shell, place / shell, tmp_path, environment(place)) as terminal:
        assert terminal.typed("vbackup init -r ke") == "vbackup init -r kept/"
        assert terminal.typed("vbackup init --repository=ke") == "vbackup init --repository=kept/"
        assert terminal.typed("vbackup backup --hosts kept-") in (
            f"vbackup backup --hosts kept-as-file{x}" for x in ("", " ")
        )
        assert terminal.typed("vbackup backup --speed ke") == "vbackup backup --speed ke"


def test_uri_and_its_colons(ask: Ask, shell: str) -> None:
    lines = ("vbackup -c qemu:///se", "vbackup --connect=qemu:///se")
    expected = {"bash": ("///session", "///session"), "zsh": ("qemu:///session",) * 2}.get(
        shell, ("qemu:///session", "--connect=qemu:///session")
    )
    assert ask(*lines) == [[one] for one in expected]


@pytest.mark.parametrize("what", ["missing", "a file", "damaged"])
def test_broken_repository_is_no_matter_of_the_line(ask: Ask, tmp_path: Path, what: str) -> None:
    path = tmp_path / "repository"
    if what == "a file":
        path.write_text("no directory")
    elif what == "damaged":
        domain = path / "00000000-0000-4000-8000-000000000000"
        domain.mkdir(parents=True)
        os.mkfifo(domain / "domain.json")
        (domain / IDS[0]).mkdir()
        (domain / IDS[0] / "manifest.json").write_text("{")
    [shown, disks] = ask(f"vbackup show -r {path} ", f"vbackup restore -r {path} web --disk ")
    assert shown == (["00000000-0000-4000-8000-000000000000"] if what == "damaged" else [])
    assert disks == []


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_nothing_is_printed_whatever_is_broken(shell: str, place: Path, tmp_path: Path) -> None:
    own = {**environment(place), "PATH": f"{tmp_path}:{environment(place)['PATH']}"}
    (tmp_path / "vbackup").write_text("#!/bin/sh\necho 'Traceback: all is lost' >&2\nexit 1\n")
    (tmp_path / "vbackup").chmod(0o755)
    with Terminal(shell, place / shell, tmp_path, own) as terminal:
        for line in ("vbackup backup ", "vbackup show -r /nowhere ", "nosuchvbackup show "):
            assert terminal.typed(line) == line
            assert b"lost" not in terminal.output
            assert b"rror" not in terminal.output


def test_libvirt_that_does_not_answer_holds_up_no_line(ask: Ask, repository: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        path = tmp_path / "silent"
        silent.bind(str(path))
        silent.listen(8)
        began = time.monotonic()
        line = f"vbackup backup -c 'qemu+unix:///system?socket={path}' -r '{repository}' w"
        assert ask(line) == [["web"]]
        assert time.monotonic() - began < 5  # 0.5 s, on a machine that does nothing else


@pytest.mark.parametrize(
    "words",
    [("recorded-domains", "backups"), ("recorded-disks", "--domain=web"), ("domains", "-c", "test:///default")],
    ids=" ".join,
)
def test_names_are_there_within_the_limit(place: Path, repository: Path, words: tuple[str, ...]) -> None:
    """Of processor time, which other work on the machine does not change much; the best of some."""
    argv = ["vbackup", "completion", "values", *words, "-r", str(repository)]
    taken_s = []
    for _ in range(7):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment(place))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.stdout
        taken_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(taken_s) < LIMIT_S, taken_s


def test_installed_scripts_are_found_by_their_shells(tmp_path: Path) -> None:
    """bash-completion, zsh's compinit and fish read them at the first TAB, without anything in the user's files."""
    prefix = tmp_path / "prefix"
    options = [f"PREFIX={prefix}", f"PYTHON={sys.executable}", "INSTALL_PACKAGES=true"]
    subprocess.run(["make", "install", *options], cwd=TOP, check=True, capture_output=True)
    share = prefix / "share"
    scripts = {
        "bash": share / "bash-completion" / "completions" / "vbackup",
        "zsh": share / "zsh" / "site-functions" / "_vbackup",
        "fish": share / "fish" / "vendor_completions.d" / "vbackup.fish",
    }
    for shell, path in scripts.items():
        assert path.read_text() == completion_script.make(shell)
        assert path.stat().st_mode & 0o777 == 0o644
    own = {"PATH": f"{prefix / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path), "LANG": "C.UTF-8", "TERM": "dumb"}
    own["XDG_DATA_DIRS"] = f"{share}:/usr/local/share:/usr/share"
    loading = {
        "bash": (
            "source /usr/share/bash-completion/bash_completion;"
            " if type -t _comp_load > /dev/null; then _comp_load vbackup; else _completion_loader vbackup; fi;"
            " complete -p vbackup;"
            " COMP_WORDS=(vbackup bac) COMP_CWORD=1 COMP_LINE='vbackup bac' COMP_POINT=11; _vbackup vbackup;"
            ' echo "${COMPREPLY[@]}"'
        ),
        "fish": "complete -C 'vbackup bac'",
    }
    said = {}
    for shell, source in loading.items():
        done = subprocess.run([shell, "-c", source], capture_output=True, text=True, check=True, env=own, cwd=tmp_path)
        said[shell] = done.stdout.split()
    assert said["bash"] == ["complete", "-o", "nosort", "-F", "_vbackup", "vbackup", "backup"]
    with Terminal("zsh", scripts["zsh"], tmp_path, own) as terminal:
        assert [terminal.offered("vbackup bac"), terminal.offered("vbackup bac")] == [["backup"]] * 2
    assert said["fish"] == ["backup", "back", "up", "domains"]
    subprocess.run(["make", "uninstall", *options], cwd=TOP, check=True, capture_output=True)
    assert [path for path in prefix.rglob("*") if not path.is_dir()] == []
