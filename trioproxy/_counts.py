"""What is counted of the sessions of one server, whatever they speak."""

from __future__ import annotations

from collections import Counter

import attrs

from ._errors import ProxyError

#: Kinds of errors that are counted apart.
MAX_ERROR_KINDS = 256


@attrs.define(eq=False)
class SessionCounts:
    """Counters of sessions.

    Attributes:
      sessions: Those that run now.
      sessions_total: All since the start.
      sessions_shed: Those that were refused, as ``max_sessions`` ran.
      retries: Attempts after the first of a session.
      hedges: Attempts that joined one which was not answered in time.
      hedges_won: Those of them that were answered first.
      subrequests: Sessions of requests that the proxy makes of itself, now.
      subrequests_total: The same since the start.
      subrequests_refused: Subrequests that were not made.
      mirrors_dropped: Requests whose mirror was given up.
      errors: What sessions ended with, by source and kind.
    """

    sessions: int = attrs.field(init=False, default=0)
    sessions_total: int = attrs.field(init=False, default=0)
    sessions_shed: int = attrs.field(init=False, default=0)
    retries: int = attrs.field(init=False, default=0)
    hedges: int = attrs.field(init=False, default=0)
    hedges_won: int = attrs.field(init=False, default=0)
    subrequests: int = attrs.field(init=False, default=0)
    subrequests_total: int = attrs.field(init=False, default=0)
    subrequests_refused: int = attrs.field(init=False, default=0)
    mirrors_dropped: int = attrs.field(init=False, default=0)
    errors: Counter[str] = attrs.field(init=False, factory=Counter)

    def count_error(self, error: ProxyError) -> None:
        """Count the error that a session ended with, by its source and root kind."""
        name = f"{error.esource.value or 'Unset'} {error.root_etype()}"
        # Kinds of the user's own could be without number.
        if name not in self.errors and len(self.errors) >= MAX_ERROR_KINDS:
            name = "other"
        self.errors[name] += 1
