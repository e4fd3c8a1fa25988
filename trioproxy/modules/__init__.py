"""Modules: pieces of a proxy that can be used again in another one.

`HttpModule` and `HttpModuleBuilder` are what a module is made of; `init_downstream_modules` and
`init_upstream_modules` of the trait add it.
"""

from __future__ import annotations

from ._abc import HttpModule as HttpModule
from ._abc import HttpModuleBuilder as HttpModuleBuilder
from ._abc import HttpModules as HttpModules
from ._abc import ModulesCtx as ModulesCtx
from ._body_guard import BodyGuard as BodyGuard
from ._body_guard import GuardedBodies as GuardedBodies
from ._compression import ResponseCompression as ResponseCompression
from ._compression import ResponseCompressionBuilder as ResponseCompressionBuilder
from ._decompression import RequestDecompression as RequestDecompression
from ._decompression import RequestDecompressionBuilder as RequestDecompressionBuilder
from ._grpc_web import GrpcWeb as GrpcWeb
from ._grpc_web import GrpcWebBridge as GrpcWebBridge
from ._inflation import InflationLimits as InflationLimits
from ._sse import Event as Event
from ._sse import EventStream as EventStream
from ._sse import SseFilter as SseFilter
