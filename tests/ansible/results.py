"""A plugin of Ansible that writes the result of each task as a line of JSON to the file VBACKUP_TEST_RESULTS."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):  # type: ignore[misc]
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "results"

    def _write(self, result: Any) -> None:
        with Path(os.environ["VBACKUP_TEST_RESULTS"]).open("a") as file:
            file.write(json.dumps([result._task.get_name(), result._result]) + "\n")

    def v2_runner_on_ok(self, result: Any) -> None:
        self._write(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._write(result)
