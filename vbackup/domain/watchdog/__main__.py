"""The watchdog's process; vbackup.domain.watchdog starts it, vbackup.domain.watchdog.process does the work.

Run by its path, it knows of no package until it has read where vbackup imports from.
"""

import json
import sys

if __name__ == "__main__":
    # Unbuffered: what follows the first line must still be there for whoever waits for it.
    orders = json.loads(open(0, "rb", buffering=0, closefd=False).readline())  # noqa: SIM115 - not ours
    sys.path[:] = orders.pop("sys_path")
    from vbackup.domain.watchdog import process

    process.main(**orders)
