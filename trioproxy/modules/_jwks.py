"""The keys by which tokens are verified: given ones, or a set that is fetched and kept (RFC 7517)."""

from __future__ import annotations

import importlib
import json
import logging
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import attrs
import trio

from .._errors import ProxyError
from .._messages import RequestHeader
from .._peer import HttpPeer
from ..semantics._cache_control import CacheControl
from ._common import seconds, whole_number

if TYPE_CHECKING:
    from ..proxy._session import Session

log = logging.getLogger("trioproxy")

#: Keys of a set that are read.
MAX_KEYS = 64
#: The longest that a set is kept without being asked for again, whatever its Cache-Control says.
LONGEST_FRESH = 86400.0
#: Seconds between two tries to get the first set.
RETRY = 5.0

#: What kind of key an algorithm takes.
KINDS = {
    **dict.fromkeys(("HS256", "HS384", "HS512"), "oct"),
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "RSA"),
    **dict.fromkeys(("ES256", "ES384", "ES512", "ES256K"), "EC"),
    **dict.fromkeys(("EdDSA", "Ed25519", "Ed448"), "OKP"),
}


class KeysUnavailable(Exception):
    """There is no key at all, as the set could not be fetched."""


def joserfc(name: str) -> Any:
    """Return a module of joserfc.

    Raises:
      ValueError: it is not installed.
    """
    try:
        return importlib.import_module(f"joserfc.{name}")
    except ImportError as exc:
        raise ValueError('JSON Web Tokens need joserfc: pip install "trioproxy[auth]"') from exc


@attrs.frozen
class Key:
    """A key with what is told of it.

    Attributes:
      kid: Its name, None where it has none.
      kind: ``"RSA"``, ``"EC"``, ``"OKP"`` or ``"oct"``.
      algorithm: The one algorithm it is for, None for those of its kind.
      key: joserfc's key.
    """

    kid: str | None
    kind: str
    algorithm: str | None
    key: Any = attrs.field(repr=False)

    def fits(self, algorithm: str, kid: str | None) -> bool:
        """Tell whether it may verify a token of an algorithm that names a key."""
        return (
            self.kind == KINDS.get(algorithm)
            and self.algorithm in (None, algorithm)
            and (kid is None or self.kid is None or self.kid == kid)
        )


def read_set(value: object) -> tuple[Key, ...]:
    """Return the keys of a JWK or a JWK Set that are for signatures.

    Keys of kinds that are not known, and broken ones, are passed over (RFC 7517 section 5).

    Raises:
      ValueError: it is neither, or has no key that can be used.
    """
    if not isinstance(value, Mapping):
        raise ValueError("a JWK Set is an object with keys")
    entries = value.get("keys", [value])
    if not isinstance(entries, Sequence) or isinstance(entries, (str, bytes)):
        raise ValueError("the keys of a JWK Set are a list")
    keys = [key for each in entries[:MAX_KEYS] if (key := _read_key(each)) is not None]
    if not keys:
        raise ValueError("no key that can verify a signature")
    return tuple(keys)


def _read_key(value: object) -> Key | None:
    if not isinstance(value, Mapping) or value.get("use", "sig") != "sig":
        return None
    operations = value.get("key_ops")
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        return None
    jwk, errors = joserfc("jwk"), joserfc("errors")
    kid, algorithm = value.get("kid"), value.get("alg")
    try:
        # What is told of the key is ours to look at; the library would refuse what it does not know.
        bare = {
            name: each
            for name, each in value.items()
            if name not in ("use", "key_ops", "alg", "kid") and not name.startswith("x5")
        }
        with warnings.catch_warnings():
            warnings.simplefilter("error", errors.SecurityWarning)  # a secret that is too short
            key = jwk.import_key(bare)
    except (errors.JoseError, errors.SecurityWarning, ValueError, TypeError, KeyError):
        return None
    return Key(
        kid if isinstance(kid, str) else None,
        key.key_type,
        algorithm if isinstance(algorithm, str) else None,
        key,
    )


def read_pem(value: bytes) -> Key:
    """Return the key of a PEM text.

    Raises:
      ValueError: there is none in it. Never taken for a shared secret: then whoever knows the public
        key could sign.
    """
    jwk, errors = joserfc("jwk"), joserfc("errors")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", errors.SecurityWarning)
            key = jwk.import_key(value)
    except (errors.JoseError, ValueError, TypeError) as exc:
        raise ValueError("keys: the PEM text has no key in it") from exc
    if key.key_type == "oct":
        raise ValueError("keys: the PEM text has no key in it")
    return Key(None, key.key_type, None, key)


def given_keys(value: Any) -> Any:
    """Return keys as `BearerJwt` has them, of all that it takes."""
    if isinstance(value, Jwks) or (isinstance(value, tuple) and all(map(_is_key, value))):
        return value
    if isinstance(value, Mapping):
        try:
            return read_set(value)
        except ValueError as exc:
            raise ValueError(f"keys: {exc}") from exc.__cause__
    if isinstance(value, (str, bytes)):
        raw = value.encode() if isinstance(value, str) else value
        if not raw.lstrip().startswith(b"-----BEGIN "):
            raise ValueError(
                "keys: a PEM text is right, a JWK or JWK Set as a dictionary (a shared secret is "
                "one of kind oct), a list of these, or a Jwks"
            )
        return (read_pem(raw),)
    if isinstance(value, Iterable):
        found = [given_keys(each) for each in value]
        if found and not any(isinstance(each, Jwks) for each in found):
            return tuple([key for each in found for key in each])
    raise ValueError("keys: PEM texts, JWKs or JWK Sets are right, or a Jwks")


def _is_key(value: object) -> bool:
    return isinstance(value, Key)


def _url(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"https?://[!-~]+", value) or "#" in value:
        raise ValueError(f"{attribute.name}={value!r}: https://host[:port]/path is right")


@attrs.define(eq=False)
class _State:
    """What was fetched, and when."""

    keys: tuple[Key, ...] = ()
    #: When it was got, when it is to be got anew, and when it was last tried; seconds of Trio.
    got: float = -math.inf
    fresh_until: float = -math.inf
    tried: float = -math.inf


@attrs.frozen(kw_only=True)
class Jwks:
    """A set of keys behind a URL (RFC 7517 section 5), fetched when the first token comes.

    One fetch at a time, over the proxy's own connections. The set is kept as long as its
    Cache-Control says, or ``ttl``; a token that names an unknown key has it fetched anew, but never
    sooner than ``min_interval`` behind the last time. Where that fails, the old keys are used for
    another ``max_stale``.

    Attributes:
      url: Where it is: ``"https://issuer.example/.well-known/jwks.json"``.
      peer: How to get there, where that takes more than the URL: another address, an authority of
        one's own, client certificates.
      ttl: Seconds that a set is fresh that does not say so itself.
      min_interval: Seconds between two fetches at least.
      max_stale: Seconds that a set may be used beyond its time where it cannot be fetched.
      timeout: Seconds that a fetch may take.
      max_bytes: Bytes that a set may have.
    """

    url: str = attrs.field(validator=_url, kw_only=False)
    peer: Any = attrs.field(default=None)
    ttl: float = attrs.field(default=3600.0, validator=seconds)
    min_interval: float = attrs.field(default=30.0, validator=seconds)
    max_stale: float = attrs.field(default=86400.0, validator=seconds)
    timeout: float = attrs.field(default=5.0, validator=seconds)
    max_bytes: int = attrs.field(default=262144, validator=whole_number(1, "bytes"))
    _target: str = attrs.field(init=False, repr=False)
    _authority: str = attrs.field(init=False, repr=False)
    _state: _State = attrs.field(init=False, factory=_State, repr=False, eq=False)
    _lock: trio.Lock = attrs.field(init=False, factory=trio.Lock, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            if parts.username is not None or parts.password is not None:
                raise ValueError("it has credentials in it")
            own = HttpPeer.parse(f"{parts.scheme}://{parts.netloc}")
        except ValueError as exc:
            raise ValueError(f"url={self.url!r}: https://host[:port]/path is right") from exc
        if self.peer is None:
            object.__setattr__(self, "peer", own)
        elif not isinstance(self.peer, HttpPeer):
            raise ValueError(f"peer={self.peer!r}: an HttpPeer or None is right")
        query = f"?{parts.query}" if parts.query else ""
        object.__setattr__(self, "_target", (parts.path or "/") + query)
        object.__setattr__(self, "_authority", parts.netloc)

    async def find(self, session: Session, algorithm: str, kid: str | None) -> list[Key]:
        """Return the keys that may verify a token, fetching the set where that is due.

        Raises:
          KeysUnavailable: there is no set, and none could be fetched.
        """
        state = self._state
        if not state.keys:
            async with self._lock:  # all wait for the first set
                if not state.keys:
                    await self._fetch(session)
        elif self._due() and not self._lock.statistics().locked:
            async with self._lock:  # others go on with what there is
                await self._fetch(session)
        if trio.current_time() > state.fresh_until + self.max_stale:
            raise KeysUnavailable
        found = self._fitting(algorithm, kid)
        if not found and (self._may_try() or self._lock.statistics().locked):
            async with self._lock:
                found = self._fitting(algorithm, kid)
                if not found:
                    await self._fetch(session)
            found = self._fitting(algorithm, kid)
        return found

    def _fitting(self, algorithm: str, kid: str | None) -> list[Key]:
        return [each for each in self._state.keys if each.fits(algorithm, kid)]

    def _due(self) -> bool:
        return trio.current_time() >= self._state.fresh_until

    def _may_try(self) -> bool:
        state = self._state
        wait = self.min_interval if state.keys else min(self.min_interval, RETRY)
        return trio.current_time() >= state.tried + wait

    async def _fetch(self, session: Session) -> None:
        """Fetch the set, unless that was tried just before; keep what there is where it fails."""
        state = self._state
        if not self._may_try():
            return
        before, state.tried = state.tried, trio.current_time()
        try:
            keys, fresh = await self._ask(session)
        except trio.Cancelled:
            if not state.keys:  # that client left: nobody else is to wait because of it
                state.tried = before
            raise
        except (ProxyError, ValueError, RecursionError) as exc:
            log.warning("the keys of %s could not be fetched: %s", self.peer, exc)
            return
        now = trio.current_time()
        state.keys, state.got, state.fresh_until = keys, now, now + fresh

    async def _ask(self, session: Session) -> tuple[tuple[Key, ...], float]:
        """Return the set and for how many seconds it is fresh."""
        fields = [
            ("Host", self._authority),
            ("Accept", "application/jwk-set+json, application/json"),
        ]
        request = RequestHeader("GET", self._target, fields)
        ask = partial(session.fetch, self.peer, request)
        answer = await ask(timeout=self.timeout, max_bytes=self.max_bytes)
        if answer.head.status != 200:
            raise ValueError(f"status {answer.head.status}")
        fresh = self.ttl
        control = CacheControl.of(answer.head.headers)
        if control is not None:
            age = control.max_age
            if "no-store" in control or "no-cache" in control:
                fresh = 0.0
            elif age is not None:
                fresh = float(age)
        return read_set(json.loads(answer.body)), min(max(fresh, self.min_interval), LONGEST_FRESH)
