"""How many files this process may have open, and what follows for its connections (row R-04)."""

from __future__ import annotations

import logging

log = logging.getLogger("trioproxy")

#: Client connections at once, where descriptors are no concern.
MOST = 10_000
#: The share of the descriptors that client connections may take: each may need one upstream too.
SHARE = 0.4


def raise_descriptor_limit() -> None:
    """Lift the soft limit of open files to the hard one, where there is such a thing."""
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            log.debug("the limit of open files stays at %d", soft)


def default_max_connections() -> int:
    """Return how many client connections are taken where the settings do not say."""
    try:
        import resource
    except ImportError:
        return MOST
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else max(1, min(MOST, int(soft * SHARE)))
