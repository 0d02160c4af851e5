"""The scripts for shells: each says the same as the grammar, whatever characters its words have."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

import pytest

from vbackup.cli import completion_script, grammar, parser
from vbackup.cli.commands.completion import SHELLS
from vbackup.cli.grammar import Command, Option, Takes

#: What no shell must take for anything else.
NASTY = "it's \"a\" \\ $HOME `id` $(id) * ? [x] {a,b} !x #x ~ =ls ; & | < > (y) 'z'"
#: Prints the options of a command, and what --free takes.
ASK = {
    "bash": """source "$1"; _vbackup_command "$2"; printf '%s\\n' "${switches[@]}"
        _vbackup_takes "$2" --free
        printf '%s\\n' "$takes" "$values" """,
    "zsh": """compdef() { }; source "$1"; _vbackup_command "$2"; print -rl -- "${switches[@]}"
        _vbackup_takes "$2" --free
        print -rl -- "$takes" "$values" """,
    "fish": """source $argv[2]; for name in switches takes values below arguments groups repeats repeated
            set $name; end
        __vbackup_command $argv[3]; printf '%s\\n' $switches; __vbackup_takes $argv[3] --free
        printf '%s\\n' "$takes" "$values" """,
}


@pytest.fixture
def _odd(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grammar whose words have every character that shells have uses for."""
    option = Option(("--free",), Takes.ONE, (f"={NASTY}",), NASTY, is_offered=True, repeats=False)
    odd = Command(("o'd d",), {}, (option,), ((f"={NASTY}",),), repeats=False, groups=())
    plain = Command((), {"o'd d": NASTY}, (), (), repeats=False, groups=())

    def read(_parser: parser.Parser) -> Sequence[Command]:
        return [plain, odd]

    monkeypatch.setattr(grammar, "read", read)


@pytest.mark.usefixtures("_odd")
@pytest.mark.parametrize("shell", SHELLS)
def test_words_reach_the_shell_as_they_are(shell: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    script = tmp_path_factory.mktemp("script") / "script"
    script.write_text(completion_script.make(shell))
    argv = [shell, *(["--no-config"] if shell == "fish" else []), "-c", ASK[shell], "-", str(script), "o'd d"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    named = {"bash": "--free", "zsh": f"--free:{NASTY}", "fish": f"--free\t{NASTY}"}[shell]
    assert (done.stdout.splitlines(), done.stderr) == ([named, "one", f"={NASTY}"], "")


@pytest.mark.parametrize("shell", SHELLS)
def test_script_says_what_made_it_and_has_all_commands(shell: str) -> None:
    script = completion_script.make(shell)
    assert f"made by 'vbackup completion {shell}'" in script
    assert script.startswith("#compdef vbackup\n") == (shell == "zsh")
    for name in parser.COMMANDS:
        assert name in script
    assert script == completion_script.make(shell)
    assert max(map(len, script.split("\n"))) < 8192
    assert script.endswith("\n")


def test_hidden_option_is_known_and_not_offered() -> None:
    script = completion_script.make("bash")
    assert "'show:--domain') takes=one values=recorded-domains" in script
    switches = script.split("\n        show)\n")[1].split("switches=(")[1].partition(")")[0].split()
    assert "--backup" in switches
    assert "--domain" not in switches
