"""Subrequests: requests that a proxy makes inside of a client's request, and what is built on them.

`allow_spawning_subrequest` of the trait switches them on, ``session.subrequest_spawner`` makes them.
"""

from __future__ import annotations

from ..proxy._subrequest import SUBREQUEST_ERROR as SUBREQUEST_ERROR
from ..proxy._subrequest import BodyMode as BodyMode
from ..proxy._subrequest import SharedBody as SharedBody
from ..proxy._subrequest import Subrequest as Subrequest
from ..proxy._subrequest import SubrequestCtx as SubrequestCtx
from ..proxy._subrequest import SubrequestSpawner as SubrequestSpawner
from ._mirror import Mirror as Mirror
from ._mirror import Mirrored as Mirrored
from ._mirror import MirrorModule as MirrorModule
