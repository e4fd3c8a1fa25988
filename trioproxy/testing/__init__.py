"""What users need to test their proxies, and implementers of message streams theirs."""

from __future__ import annotations

from ..streams._memory import MemoryDownstream as MemoryDownstream
from ..streams._memory import MemoryUpstream as MemoryUpstream
from ..streams._memory import memory_exchange as memory_exchange
from ._cache_oracle import cache_broken as cache_broken
from ._cache_oracle import check_cached as check_cached
from ._cache_scenario import Ask as Ask
from ._cache_scenario import CacheClient as CacheClient
from ._cache_scenario import CacheScenario as CacheScenario
from ._cache_scenario import Deed as Deed
from ._cache_scenario import Resource as Resource
from ._cache_scenario import make_cache_scenario as make_cache_scenario
from ._cache_world import run_cached as run_cached
from ._conformance import check_message_stream as check_message_stream
from ._invariants import check_invariants as check_invariants
from ._making import make_scenario as make_scenario
from ._making import shrink as shrink
from ._network import Fault as Fault
from ._network import Link as Link
from ._network import Path as Path
from ._observed import Observed as Observed
from ._scenario import Answer as Answer
from ._scenario import Change as Change
from ._scenario import Client as Client
from ._scenario import Filter as Filter
from ._scenario import GoAway as GoAway
from ._scenario import Http2 as Http2
from ._scenario import Name as Name
from ._scenario import Request as Request
from ._scenario import Reset as Reset
from ._scenario import Scenario as Scenario
from ._scenario import Shadow as Shadow
from ._scenario import Stop as Stop
from ._world import run_scenario as run_scenario
