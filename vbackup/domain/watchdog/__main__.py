"""Entry point of the watchdog process: vbackup.domain.watchdog starts it, its module process does the work.

It is run by path and isolated, so it can import vbackup only after reading sys.path from its orders.
"""

import json
import sys

if __name__ == "__main__":
    # Unbuffered, so that the lines after the first stay in the pipe for process.Pipe.
    orders = json.loads(open(0, "rb", buffering=0, closefd=False).readline())  # noqa: SIM115 - stdin stays open
    sys.path[:] = orders.pop("sys_path")
    from vbackup.domain.watchdog import process

    process.main(**orders)
