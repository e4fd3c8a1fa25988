"""The HTTP cache: stores, policy, keys, lock. `trioproxy.CachingProxy` puts it to use."""

from __future__ import annotations

from ..semantics._cache_control import CacheControl as CacheControl
from ..semantics._range import InvalidRange as InvalidRange
from ..semantics._range import MultiRange as MultiRange
from ..semantics._range import NoRange as NoRange
from ..semantics._range import RangeType as RangeType
from ..semantics._range import SingleRange as SingleRange
from ._disk import DiskStorage as DiskStorage
from ._eviction import EvictionManager as EvictionManager
from ._eviction import LruEviction as LruEviction
from ._eviction import S3FifoEviction as S3FifoEviction
from ._http_cache import CacheOptionOverrides as CacheOptionOverrides
from ._http_cache import HttpCache as HttpCache
from ._key import CacheKey as CacheKey
from ._key import CompactKey as CompactKey
from ._key import VarianceBuilder as VarianceBuilder
from ._key import default_cache_key as default_cache_key
from ._lock import CacheLock as CacheLock
from ._lock import CacheLockStatistics as CacheLockStatistics
from ._lock import LockStatus as LockStatus
from ._memory import MemoryStorage as MemoryStorage
from ._meta import CacheMeta as CacheMeta
from ._phase import CachePhase as CachePhase
from ._phase import CacheStateError as CacheStateError
from ._phase import ForcedFreshness as ForcedFreshness
from ._phase import HitStatus as HitStatus
from ._phase import PurgeStatus as PurgeStatus
from ._policy import Cacheable as Cacheable
from ._policy import CacheMetaDefaults as CacheMetaDefaults
from ._policy import NoCacheReason as NoCacheReason
from ._policy import RespCacheable as RespCacheable
from ._policy import SharedPolicy as SharedPolicy
from ._policy import Uncacheable as Uncacheable
from ._policy import Verdict as Verdict
from ._policy import resp_cacheable as resp_cacheable
from ._predictor import Predictor as Predictor
from ._shared import SharedCache as SharedCache
from ._storage import Appended as Appended
from ._storage import Created as Created
from ._storage import HitHandler as HitHandler
from ._storage import MissHandler as MissHandler
from ._storage import PurgeType as PurgeType
from ._storage import Storage as Storage
from ._storage import StorageStatistics as StorageStatistics
from ._storage import cache_tags as cache_tags
