"""Modules: pieces of a proxy that can be used again in another one.

`HttpModule` and `HttpModuleBuilder` are what a module is made of; `init_downstream_modules` and
`init_upstream_modules` of the trait add it.
"""

from __future__ import annotations

from ._abc import HttpModule as HttpModule
from ._abc import HttpModuleBuilder as HttpModuleBuilder
from ._abc import HttpModules as HttpModules
from ._abc import ModulesCtx as ModulesCtx
