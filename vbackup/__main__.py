"""``python -m vbackup`` is the ``vbackup`` command."""

from vbackup.cli import command

if __name__ == "__main__":
    command()
