"""Modules: pieces of a proxy that can be used again in another one.

`HttpModule` and `HttpModuleBuilder` are what a module is made of; `init_downstream_modules` and
`init_upstream_modules` of the trait add it.
"""

from __future__ import annotations

from ._abc import HttpModule as HttpModule
from ._abc import HttpModuleBuilder as HttpModuleBuilder
from ._abc import HttpModules as HttpModules
from ._abc import ModulesCtx as ModulesCtx
from ._api_key import ApiKeyAuth as ApiKeyAuth
from ._api_key import ApiKeyAuthModule as ApiKeyAuthModule
from ._basic_auth import BasicAuth as BasicAuth
from ._basic_auth import BasicAuthModule as BasicAuthModule
from ._basic_auth import hash_password as hash_password
from ._body_guard import BodyGuard as BodyGuard
from ._body_guard import GuardedBodies as GuardedBodies
from ._compression import ResponseCompression as ResponseCompression
from ._compression import ResponseCompressionBuilder as ResponseCompressionBuilder
from ._cors import Cors as Cors
from ._decompression import RequestDecompression as RequestDecompression
from ._decompression import RequestDecompressionBuilder as RequestDecompressionBuilder
from ._forward_auth import ForwardAuth as ForwardAuth
from ._forward_auth import ForwardAuthModule as ForwardAuthModule
from ._forwarding import Forwarding as Forwarding
from ._forwarding import ForwardingFields as ForwardingFields
from ._grpc_web import GrpcWeb as GrpcWeb
from ._grpc_web import GrpcWebBridge as GrpcWebBridge
from ._inflation import InflationLimits as InflationLimits
from ._jwks import Jwks as Jwks
from ._jwt import BearerJwt as BearerJwt
from ._jwt import BearerJwtModule as BearerJwtModule
from ._prefix import PathPrefix as PathPrefix
from ._prefix import PathPrefixModule as PathPrefixModule
from ._request_id import RequestId as RequestId
from ._request_id import RequestIdModule as RequestIdModule
from ._rewrite import RewriteCookies as RewriteCookies
from ._rewrite import RewriteLocation as RewriteLocation
from ._security_headers import SecurityHeaders as SecurityHeaders
from ._sse import Event as Event
from ._sse import EventStream as EventStream
from ._sse import SseFilter as SseFilter
