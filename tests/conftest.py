"""How the property tests run: short and without a stop-watch, or long by ``nox -s fuzz``."""

from __future__ import annotations

import gc

from hypothesis import settings

# No deadline for an example: how long one takes says more of the machine than of the code.
settings.register_profile("default", max_examples=50, deadline=None)
settings.register_profile("deep", max_examples=5000, deadline=None)
settings.load_profile("default")

# What collecting makes lives as long as the run: nobody looks for garbage in it, then or later.
gc.disable()


def pytest_collection_finish() -> None:
    """Look for garbage from now on, but not among thousands of tests."""
    gc.freeze()
    gc.enable()
