"""``python -m vbackup`` is the ``vbackup`` command."""

import sys

from vbackup.cli import main

if __name__ == "__main__":
    sys.exit(main())
