"""Only requests with a good JSON Web Token get to the origin, which is told whose it was.

nox -s demo -- bearer_jwt               with an origin of its own, or by hand:
python examples/_origin.py &
python examples/bearer_jwt.py http://127.0.0.1:9000 127.0.0.1:8080

It prints a token that is good for an hour; needs: pip install "trioproxy[auth]".

$ curl -i -H "Authorization: Bearer $TOKEN" http://127.0.0.1:8080/hello
HTTP/1.1 200 OK
...
X-User: ann                             (what the origin was asked)

$ curl -i http://127.0.0.1:8080/hello
HTTP/1.1 401 Unauthorized
WWW-Authenticate: Bearer realm="api"
...
"""

from __future__ import annotations

import secrets
import sys
import time
from typing import Any

import attrs

import trioproxy
from trioproxy import HttpPeer, Session
from trioproxy.modules import BearerJwt, HttpModules, Jwks


@attrs.define
class Tokens(trioproxy.ProxyHttp[None]):
    peer: HttpPeer
    # The key, or where the keys of an issuer are: Jwks("https://issuer.example/jwks.json").
    keys: dict[str, str | list[str]] | Jwks
    algorithms: tuple[str, ...] = ("HS256",)

    def init_downstream_modules(self, modules: HttpModules) -> None:
        modules.add_module(
            BearerJwt(
                keys=self.keys,
                algorithms=self.algorithms,
                issuer="https://issuer.example",
                audience="the-origin",
                leeway=10,
                forward={"sub": "X-User"},
            )
        )

    def new_ctx(self) -> None:
        return None

    async def upstream_peer(self, session: Session, ctx: None) -> HttpPeer:
        return self.peer


def a_token(key: dict[str, str | list[str]], **claims: Any) -> str:
    """Return what an issuer would make."""
    from joserfc import jwk, jwt

    whole = {"iss": "https://issuer.example", "aud": "the-origin", "exp": int(time.time()) + 3600}
    return jwt.encode({"alg": "HS256"}, whole | claims, jwk.import_key(key))


def main(origin: str = "http://127.0.0.1:9000", bind: str = "127.0.0.1:8080") -> None:
    key: dict[str, str | list[str]] = {"kty": "oct", "k": secrets.token_urlsafe(32)}
    proxy = Tokens(HttpPeer.parse(origin), key)
    print(f"TOKEN={a_token(key, sub='ann')}", flush=True)
    trioproxy.run(proxy, bind)


if __name__ == "__main__":
    main(*sys.argv[1:])
