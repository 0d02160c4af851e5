"""What the tests of the hook script and its installation have in common."""

from __future__ import annotations

import os

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
