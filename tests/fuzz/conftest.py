"""How hypothesis works here: without files, without a clock, and in CI without chance."""

import atexit
import os
import tempfile

from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

# What it caches of Python's own is gone with the process.
_home = tempfile.TemporaryDirectory(prefix="netcomm-hypothesis-")
atexit.register(_home.cleanup)
set_hypothesis_home_dir(_home.name)
settings.register_profile(
    "netcomm", derandomize="CI" in os.environ, database=None, deadline=None, print_blob=True, max_examples=200
)
settings.load_profile("netcomm")
