"""Entry point of the watcher process: vbackup.operations.session_watcher starts it, its module process does the work.

It is run by path and isolated, so it can import vbackup only after reading sys.path from its orders.
"""

import json
import sys

if __name__ == "__main__":
    orders = json.load(sys.stdin)
    sys.path[:] = orders.pop("sys_path")
    from vbackup.operations.session_watcher import process

    process.main(**orders)
