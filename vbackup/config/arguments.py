"""Options of the configuration as the arguments of a command. Does no I/O."""

from __future__ import annotations

from vbackup.config.model import Options


def argv(command: str, options: Options) -> list[str]:
    """Return the command and its options: ["prune", "--keep-daily=7"]. There are no secrets among them.

    A value stands in one word with its option, so that one that begins with a dash is no option itself.
    """
    arguments = [command]
    for name, value in options.items():
        if isinstance(value, bool):
            arguments += [f"--{name}"] if value else []
        elif isinstance(value, str):
            arguments.append(f"--{name}={value}")
        else:
            arguments += [f"--{name}={one}" for one in value]
    return arguments
