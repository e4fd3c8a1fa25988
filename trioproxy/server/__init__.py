"""Running a proxy object: listeners, signals, the command line."""

from __future__ import annotations

from ..upstream._pool import PoolStatistics as PoolStatistics
from ._run import run as run
from ._serve import Running as Running
from ._serve import Statistics as Statistics
from ._serve import serve as serve
