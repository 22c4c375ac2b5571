"""For all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# No time limit for an example: the first may import MLflow. In CI the same examples every time, so that a red run can
# be had again; on a developer's machine new ones.
settings.register_profile("ours", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("ours")
