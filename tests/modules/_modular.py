"""A proxy whose modules a test chooses, in every pairing of protocols."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from tests._support.matrix import H1, H2C, LEGS, PAIRINGS, Pairing
from tests._support.recording import Recorder
from trioproxy.modules import HttpModuleBuilder, HttpModules
from trioproxy.testing._network import Link, Path

#: Every version on each side, once in clear text and once over TLS.
VERSIONS = [each for each in PAIRINGS if each.down.tls is each.up.tls]
#: What a peer that speaks HTTP/2 alone can be asked from.
TO_HTTP2 = [Pairing(leg, H2C) for leg in LEGS]
PLAIN_H1 = Pairing(H1, H1)
#: Ways in which the network cuts what it carries; nothing at all, then every point.
CUTS = [(), (1,), (2,), (3,), (5, 1, 7)]


def cut_link(pieces: tuple[int, ...]) -> Link:
    """Return a link that hands on bytes in pieces of these sizes."""
    return Link(Path(pieces=pieces), Path(pieces=pieces))


@attrs.define(eq=False, slots=False)
class Modular(Recorder):
    """A recorder with modules."""

    builders: Sequence[HttpModuleBuilder] = attrs.field(default=(), kw_only=True)

    def init_downstream_modules(self, modules: HttpModules) -> None:
        for builder in self.builders:
            modules.add_module(builder)
