"""The phases of a request towards the cache, and what is allowed in each (`trait.md` 8.1, 8.2)."""

from __future__ import annotations

import enum
from typing import ClassVar

import attrs

from ._policy import NoCacheReason


@attrs.frozen
class CachePhase:
    """Where a request stands towards the cache (Pingora's ``CachePhase``): compare with ``==``.

    Attributes:
      name: Pingora's name.
      text: The name for logs and fields.
      reason: Why nothing is cached, of `Disabled` and `RevalidatedNoCache`.
    """

    name: str
    text: str
    reason: NoCacheReason | None = None

    #: Enabled, no key yet.
    Uninit: ClassVar[CachePhase]
    #: The key is set; the lookup comes, or is under way.
    CacheKey: ClassVar[CachePhase]
    #: Predicted not to be cacheable: no lookup, but the response is still looked at.
    Bypass: ClassVar[CachePhase]
    #: Nothing usable is there; the response will fill the cache.
    Miss: ClassVar[CachePhase]
    #: A fresh response is there, or one that a filter calls fresh.
    Hit: ClassVar[CachePhase]
    #: A stale response is there: it is validated, or served because of an error.
    Stale: ClassVar[CachePhase]
    #: A stale response is served while another request fetches anew.
    StaleUpdating: ClassVar[CachePhase]
    #: There was a stale response, and a new one replaces it.
    Expired: ClassVar[CachePhase]
    #: There was a stale response, and a 304 made it fresh.
    Revalidated: ClassVar[CachePhase]

    @staticmethod
    def Disabled(reason: NoCacheReason) -> CachePhase:
        """Return the phase of a request that is not cached."""
        return CachePhase("Disabled", "disabled", reason)

    @staticmethod
    def RevalidatedNoCache(reason: NoCacheReason) -> CachePhase:
        """Return the phase of a stale response that a 304 confirmed, but only for this time."""
        return CachePhase("RevalidatedNoCache", "revalidated-nocache", reason)

    def __str__(self) -> str:
        return self.text if self.reason is None else f"{self.text} ({self.reason})"


for _name, _text in {
    "Uninit": "uninitialized",
    "CacheKey": "key",
    "Bypass": "bypass",
    "Miss": "miss",
    "Hit": "hit",
    "Stale": "stale",
    "StaleUpdating": "stale-updating",
    "Expired": "expired",
    "Revalidated": "revalidated",
}.items():
    setattr(CachePhase, _name, CachePhase(_name, _text))

#: The phase of a cache that nobody has switched on.
NEVER_ENABLED = CachePhase.Disabled(NoCacheReason.NeverEnabled)

#: The phases that each event is allowed in.
TRANSITIONS: dict[str, frozenset[str]] = {
    event: frozenset(phases.split())
    for event, phases in {
        "enable": "Disabled",
        "set_cache_key": "Uninit CacheKey",
        "bypass": "CacheKey",
        "cache_lookup": "CacheKey Stale",
        "cache_vary_lookup": "CacheKey Stale",
        "cache_found": "CacheKey Stale",
        "cache_miss": "CacheKey Bypass Stale",
        "cache_lock_wait": "CacheKey Stale",
        "set_cache_lock": "Disabled CacheKey Stale Hit",
        "set_cache_meta": "Stale Miss",
        "update_variance": "Miss Expired",
        "set_miss_handler": "Miss Expired",
        "miss_handler": "Miss Expired",
        "write_miss_body": "Miss Expired",
        "finish_miss_handler": "Miss Expired",
        "miss_body_reader": "Miss Expired",
        "revalidate_merge_header": "Stale",
        "revalidate_cache_meta": "Stale",
        "revalidate_uncacheable": "Stale",
        "set_stale_updating": "Stale",
        "hit_handler": "Hit Stale StaleUpdating Revalidated RevalidatedNoCache",
        "finish_hit_handler": "Hit Miss Expired Stale StaleUpdating Revalidated RevalidatedNoCache",
        "cache_meta": "Miss Hit Stale StaleUpdating Expired Revalidated RevalidatedNoCache",
        "set_max_file_size_bytes": (
            "Uninit CacheKey Bypass Miss Hit Stale StaleUpdating Expired Revalidated "
            "RevalidatedNoCache"
        ),
        "purge": "CacheKey",
        "spawn_async_purge": (
            "CacheKey Bypass Miss Hit Stale StaleUpdating Expired Revalidated RevalidatedNoCache"
        ),
        "set_write_lock": (
            "Uninit CacheKey Bypass Miss Hit Stale StaleUpdating Expired Revalidated "
            "RevalidatedNoCache"
        ),
    }.items()
}

#: The phases in which the origin had a say in the response.
UPSTREAM_USED = frozenset(
    ("Disabled", "Bypass", "Miss", "Expired", "Revalidated", "RevalidatedNoCache")
)


class CacheStateError(RuntimeError):
    """The cache was asked for something that its phase does not allow: a mistake of the program."""


class ForcedFreshness(enum.Enum):
    """What `cache_hit_filter` makes of a response that was found (Pingora's name)."""

    #: Stale, and not even to be served stale.
    FORCE_EXPIRED = "ForceExpired"
    #: As if it was not there. It is fetched anew without validators, then overwritten.
    FORCE_MISS = "ForceMiss"
    #: Served though it may be stale.
    FORCE_FRESH = "ForceFresh"


class HitStatus(enum.Enum):
    """What a lookup that found something counts as (Pingora's ``HitStatus``)."""

    EXPIRED = "Expired"
    FORCE_EXPIRED = "ForceExpired"
    FORCE_MISS = "ForceMiss"
    FAILED_HIT_FILTER = "FailedHitFilter"
    FRESH = "Fresh"
    FORCE_FRESH = "ForceFresh"

    @staticmethod
    def of(is_fresh: bool, forced: ForcedFreshness | None = None) -> HitStatus:
        """Return the status from the response's own freshness and what the filter said to it."""
        if forced is not None:
            return HitStatus(forced.value)
        return HitStatus.FRESH if is_fresh else HitStatus.EXPIRED

    def is_fresh(self) -> bool:
        """Return whether it is served without asking the origin."""
        return self in (HitStatus.FRESH, HitStatus.FORCE_FRESH)

    def is_treated_as_miss(self) -> bool:
        """Return whether it counts as not there."""
        return self in (HitStatus.FORCE_MISS, HitStatus.FAILED_HIT_FILTER)


class PurgeStatus(enum.Enum):
    """How a purge went (Pingora's ``PurgeStatus``)."""

    NO_CACHE = "NoCache"
    FOUND = "Found"
    NOT_FOUND = "NotFound"
    ERROR = "Error"

    @property
    def code(self) -> int:
        """The HTTP status of the answer."""
        return _PURGE_CODES[self]


_PURGE_CODES = {
    PurgeStatus.NO_CACHE: 405,
    PurgeStatus.FOUND: 200,
    PurgeStatus.NOT_FOUND: 404,
    PurgeStatus.ERROR: 500,
}
