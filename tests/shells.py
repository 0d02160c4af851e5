"""Real shells that complete a line: bash and zsh on a terminal, with the keys that a person presses, and fish.

``offered`` is what the shell's completion has for the word before the cursor; ``typed`` is the line after TAB.
"""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

#: How long a shell may take; each answer comes within a fraction of a second.
PATIENCE_S = 30.0

BASH = r"""
bind 'set enable-bracketed-paste off'
bind 'set bell-style none'
bind 'set completion-query-items 0'
bind 'set page-completions off'
bind 'set show-all-if-ambiguous on'
PS1= PS2=
probe() {
    _vbackup "$@"
    printf '%s\0' "${COMPREPLY[@]}" > "$PROBE"
}
complete -o nosort -F probe vbackup
dump() {
    printf '%s' "$READLINE_LINE" > "$PROBE.line.new"
    mv "$PROBE.line.new" "$PROBE.line"
    READLINE_LINE=
}
bind -x '"\C-g": dump'
"""
ZSH = r"""
autoload -Uz compinit
# As it is installed, the script is found by its name.
[[ $SCRIPT:t != _vbackup ]] || fpath=($SCRIPT:h $fpath)
compinit -u -D
[[ $SCRIPT:t == _vbackup ]] || source "$SCRIPT"
unsetopt auto_menu beep zle_bracketed_paste 2> /dev/null
unset zle_bracketed_paste
PS1= PS2= RPS1= PROMPT_EOL_MARK=
zstyle ':completion:*' list-prompt ''
LISTMAX=100000
compadd() {
    if [[ ${@[1,(i)(-|--)]} != *-[OAD]* && $* != *-[OAD]\ * ]]; then
        local -a __found
        builtin compadd -O __found "$@"
        (($#__found)) && print -rN -- $__found >> $PROBE
    fi
    builtin compadd "$@"
}
dump() {
    print -rn -- $BUFFER > $PROBE.line.new
    command mv $PROBE.line.new $PROBE.line
    BUFFER=
}
zle -N dump
bindkey '^G' dump
"""


class Terminal:
    """A bash or zsh on a terminal. A context manager."""

    def __init__(self, shell: str, script: Path, directory: Path, environment: Mapping[str, str]) -> None:
        """``directory``: where it works, and what tells it and the test what was found; it is empty."""
        self._probe = directory / "probe"
        rc = directory / "rc"
        rc.write_text(f"source '{script}'\n{BASH}" if shell == "bash" else ZSH)
        argv = ["bash", "--noprofile", "--norc", "-i"] if shell == "bash" else ["zsh", "-f", "-i"]
        own = {**environment, "PROBE": str(self._probe), "SCRIPT": str(script), "TERM": "dumb", "HOME": str(directory)}
        self._pid, self._fd = pty.fork()
        if self._pid == 0:  # pragma: no cover
            os.chdir(directory)
            os.execvpe(argv[0], argv, own)
        self.output = b""
        for text in (f" source '{rc}'; touch '{self._probe}.line'\n", "\a"):
            self._send(text)
            self._line()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_exc: object) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.close(self._fd)
        os.waitpid(self._pid, 0)

    def offered(self, line: str) -> list[str]:
        """What the completion has after this line."""
        self.typed(line)
        found = self._probe.read_bytes() if self._probe.exists() else b""
        return [word.decode() for word in found.split(b"\0") if word]

    def typed(self, line: str) -> str:
        """The line after TAB. What the shell printed meanwhile is in ``output``."""
        self._probe.unlink(missing_ok=True)
        self.output = b""
        self._send(f"{line}\t\a")
        return self._line()

    def _send(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def _line(self) -> str:
        """Wait for the line, which the shell writes to a file at ^G."""
        path = self._probe.with_name("probe.line")
        deadline = time.monotonic() + PATIENCE_S
        while not path.exists():
            if select.select([self._fd], [], [], 0.02)[0]:
                self.output += os.read(self._fd, 65536)
            assert time.monotonic() < deadline, self.output
        line = path.read_text()
        path.unlink()
        return line


class Fish:
    """A fish, which has a command that completes a line."""

    def __init__(self, script: Path, directory: Path, environment: Mapping[str, str]) -> None:
        self._directory = directory
        self._environment = {**environment, "HOME": str(directory), "XDG_CONFIG_HOME": str(directory), "TERM": "dumb"}
        self._script = script

    def offered(self, *lines: str) -> list[list[str]]:
        """What the completion has after each of the lines."""
        # A process for all of them; a line by itself ends what is of one.
        source = "source $argv[1]; for line in $argv[2..-1]; complete -C $line; echo; end"
        argv = ["fish", "--no-config", "-c", source, str(self._script), *lines]
        done = subprocess.run(
            argv, capture_output=True, text=True, check=True, env=self._environment, cwd=self._directory
        )
        assert done.stderr == ""
        answers: list[list[str]] = [[]]
        for found in done.stdout.splitlines():
            if found:
                answers[-1].append(found.partition("\t")[0])
            else:
                answers.append([])
        return answers[:-1]
