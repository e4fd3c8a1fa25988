"""The callbacks of the HTTP trait, in one table; `_callbacks` holds its classes to it."""

from __future__ import annotations

from .._callbacks import ASYNC, EITHER, SYNC
from .._callbacks import Plan as Plan
from .._callbacks import check_class as check_class
from .._callbacks import make_plan as make_plan
from .._callbacks import plan_of as plan_of

#: Every callback in the order in which they run: name, arguments besides self, kind.
CALLBACKS: tuple[tuple[str, int, str], ...] = (
    ("init_downstream_modules", 1, SYNC),
    ("init_upstream_modules", 1, SYNC),
    ("new_ctx", 0, SYNC),
    ("on_connection_reuse", 3, SYNC),
    ("early_request_filter", 2, ASYNC),
    ("allow_spawning_subrequest", 2, SYNC),
    ("request_filter", 2, ASYNC),
    ("request_cache_filter", 2, SYNC),
    ("cache_key_callback", 2, SYNC),
    ("is_purge", 2, SYNC),
    ("purge_response_filter", 4, SYNC),
    ("cache_hit_filter", 5, ASYNC),
    ("cache_miss", 2, SYNC),
    ("proxy_upstream_filter", 2, ASYNC),
    ("upstream_peer", 2, ASYNC),
    ("fail_to_connect", 4, SYNC),
    ("connected_to_upstream", 6, ASYNC),
    ("upstream_request_filter", 3, ASYNC),
    ("custom_forwarding", 4, ASYNC),
    ("downstream_custom_message_proxy_filter", 4, ASYNC),
    ("upstream_custom_message_proxy_filter", 4, ASYNC),
    ("request_body_filter", 4, ASYNC),
    ("adjust_upstream_modules", 4, ASYNC),
    ("upstream_response_filter", 3, ASYNC),
    ("response_cache_filter", 3, SYNC),
    ("cache_vary_filter", 3, SYNC),
    ("cache_not_modified_filter", 3, SYNC),
    ("range_header_filter", 3, SYNC),
    ("response_filter", 3, ASYNC),
    ("upstream_response_body_filter", 4, EITHER),
    ("response_body_filter", 4, EITHER),
    ("upstream_response_trailer_filter", 3, SYNC),
    ("response_trailer_filter", 3, ASYNC),
    ("error_while_proxy", 5, SYNC),
    ("should_serve_stale", 3, SYNC),
    ("fail_to_proxy", 3, ASYNC),
    ("suppress_error_log", 3, SYNC),
    ("request_summary", 2, SYNC),
    ("logging", 3, ASYNC),
    ("persist_connection_context", 2, SYNC),
)
NAMES = frozenset(name for name, _, _ in CALLBACKS)
