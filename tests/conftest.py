"""What holds for every test: one thread per process, and property tests that draw the same examples each time."""

import os

# Read when torch is first imported, and inherited by every process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"

from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None, database=None)
settings.load_profile("ci")
