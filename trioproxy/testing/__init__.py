"""What users need to test their proxies, and implementers of message streams theirs."""

from __future__ import annotations

from ..streams._memory import MemoryDownstream as MemoryDownstream
from ..streams._memory import MemoryUpstream as MemoryUpstream
from ..streams._memory import memory_exchange as memory_exchange
from ._conformance import check_message_stream as check_message_stream
