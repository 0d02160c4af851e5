"""Entry point of the watcher process: vbackup.operations.session_watcher starts it, its module process does the work.

It is run by path and isolated, so it can import vbackup only after reading sys.path from its orders.
"""

import json
import os
import sys

if __name__ == "__main__":
    orders = json.load(sys.stdin)
    os.dup2(2, 0)
    if "link" not in orders:
        os.write(1, b"%d" % os.getpid())
        os.dup2(2, 1)  # vbackup waits for the end of our output
    sys.path[:] = orders.pop("sys_path")
    from vbackup.operations.session_watcher import process

    process.main(**orders)
