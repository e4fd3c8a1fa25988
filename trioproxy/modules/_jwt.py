"""Requests that bring a JSON Web Token (RFC 7519, RFC 6750)."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import attrs

from .._clock import wall_time
from .._messages import RequestHeader
from ._abc import HttpModule, HttpModuleBuilder
from ._common import (
    Applies,
    answer,
    challenge,
    exempt,
    field_names,
    flag,
    function,
    pairs,
    realm,
    set_field,
    strings,
    whole_number,
)
from ._jwks import KINDS, Jwks, Key, KeysUnavailable, given_keys, joserfc

if TYPE_CHECKING:
    from ..proxy._session import Session

#: Three parts, none of them empty: a token without a signature is none.
_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_SCOPE = re.compile(r"[!\x23-\x5b\x5d-\x7e]+")
#: Keys of a set that are tried where a token does not name one.
_TRIED = 4
_UNSAFE = re.compile(r"[\x00-\x1f\x7f]")


class _Refused(Exception):
    """A token that is not taken: what RFC 6750 section 3.1 calls it, and why."""

    def __init__(self, text: str, error: str = "invalid_token", status: int = 401) -> None:
        super().__init__(text)
        self.text = text
        self.error = error
        self.status = status


def _object(part: str) -> dict[str, Any]:
    """Return the JSON object that a part of a token is."""
    try:
        value = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _Refused("the token is malformed")
    return value


def _moment(claims: Mapping[str, Any], name: str) -> float | None:
    """Return a time of a token in seconds since the epoch, None where it has none."""
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_finite(value):
        raise _Refused(f"the claim {name} is malformed")
    return float(value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _texts(value: Any) -> Any:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else strings(value)


def bearer_token(values: list[str]) -> str | None:
    """Return the token of the Authorization fields of a request, None where there is none.

    Raises:
      _Refused: there are two of them, or what stands there is no token.
    """
    if len(values) > 1:
        raise _Refused("more than one Authorization field", "invalid_request", 400)
    if not values:
        return None
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != "bearer":
        return None
    token = token.strip(" ")
    if not token or " " in token or "," in token:
        raise _Refused("no token", "invalid_request", 400)
    return token


class BearerJwtModule(HttpModule):
    """One request's part of `BearerJwt`."""

    def __init__(self, options: BearerJwt) -> None:
        self._options = options
        #: The claims of the token, None before it was found to be good.
        self.claims: Mapping[str, Any] | None = None

    async def request_header_filter(self, session: Session, request: RequestHeader) -> bool:
        """Let a request with a good token pass, answer all others."""
        options = self._options
        if exempt(options.applies, session, request, *[name for _, name in options.forward]):
            return False
        values = request.headers.get_all(b"authorization")
        if options.remove:
            request.headers.remove(b"authorization")
        parameters = [("realm", options.realm)]
        if options.scopes:
            parameters.append(("scope", " ".join(options.scopes)))
        try:
            token = bearer_token(values)
            if token is None:  # RFC 6750 section 3: no error where nothing was brought
                return await challenge(session, "Bearer", parameters)
            claims = await options.verify(session, token)
            told = options.to_tell(claims)
        except _Refused as exc:
            parameters += [("error", exc.error), ("error_description", exc.text)]
            return await challenge(session, "Bearer", parameters, status=exc.status)
        except KeysUnavailable:
            retry = [("Retry-After", "5")]
            return await answer(session, 503, retry, "tokens cannot be verified now\n")
        self.claims = claims
        for name, value in told:
            set_field(request, name, value)
        return False


@attrs.frozen(kw_only=True)
class BearerJwt(HttpModuleBuilder):
    """Lets only requests with a good JSON Web Token pass (RFC 7519, RFC 6750).

    The token comes in Authorization and nowhere else. Its signature is verified by one of the
    ``algorithms``, with a key of that algorithm's kind: what a token says of its own key (``jwk``,
    ``jku``, ``x5u``, ``x5c``) is not looked at, and a token with ``crit`` is refused. It needs
    joserfc: ``pip install "trioproxy[auth]"``.

    Attributes:
      keys: A PEM text, a JWK or a JWK Set as a dictionary, a list of these; or a `Jwks`, which
        fetches them. A shared secret is a JWK of kind ``oct``.
      algorithms: The algorithms that are taken, ``["RS256", "ES256"]`` say; never ``none``.
      issuer: The issuer (``iss``), or several; None takes any.
      audience: Who the token must be for (``aud``), or several of whom one will do. None takes only
        tokens that say nothing of that.
      scopes: What the token must allow (``scope``, or ``scp``); without it the answer is 403.
      leeway: Seconds that clocks may differ.
      require_exp: Whether a token must say when it expires.
      forward: By the name of a claim, the request field that tells it to the origin:
        ``{"sub": "X-User"}``. What clients send in these fields is removed.
      remove: Whether the origin gets the request without Authorization.
      max_token_bytes: The longest token that is looked at.
      realm: What the answer calls what is protected.
      applies: Tells of a session whether a token is asked for; None: always.
    """

    order = 600
    module_type = BearerJwtModule

    keys: tuple[Key, ...] | Jwks = attrs.field(converter=given_keys, repr=False)
    algorithms: tuple[str, ...] = attrs.field(converter=strings)
    issuer: tuple[str, ...] = attrs.field(default=None, converter=_texts)
    audience: tuple[str, ...] = attrs.field(default=None, converter=_texts)
    scopes: tuple[str, ...] = attrs.field(default=(), converter=_texts)
    leeway: int = attrs.field(default=0, validator=whole_number(0, "seconds"))
    require_exp: bool = attrs.field(default=True, validator=flag)
    forward: tuple[tuple[str, str], ...] = attrs.field(default=(), converter=pairs)
    remove: bool = attrs.field(default=False, validator=flag)
    max_token_bytes: int = attrs.field(default=8192, validator=whole_number(64, "bytes"))
    realm: str = attrs.field(default="api", validator=realm)
    applies: Applies | None = attrs.field(default=None, validator=function)
    _registries: Mapping[str, Any] = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if not self.algorithms:
            raise ValueError("algorithms: at least one is right, such as ['RS256']")
        for each in self.algorithms:
            if each not in KINDS:
                raise ValueError(f"algorithms has {each!r}: some of {', '.join(KINDS)} are right")
        if not isinstance(self.keys, Jwks):
            kinds = {key.kind for key in self.keys}
            for each in self.algorithms:
                if KINDS[each] not in kinds:
                    raise ValueError(
                        f"algorithms has {each!r}, and no key is of kind {KINDS[each]}"
                    )
        elif any(KINDS[each] == "oct" for each in self.algorithms):
            raise ValueError(
                f"algorithms={self.algorithms!r}: a set that is fetched has public keys, and HS256 "
                "and its like take a shared secret"
            )
        for each in self.scopes:
            if not _SCOPE.fullmatch(each):
                raise ValueError(f"scopes has {each!r}: single words are right")
        told: Any = self.forward
        for claim, name in told:
            if not isinstance(claim, str) or not claim:
                raise ValueError(f"forward has {claim!r}: the name of a claim is right")
            field_names(self, attrs.fields(BearerJwt).forward, (name,))
        jws, registries = joserfc("jws"), {}
        for each in self.algorithms:
            registry = jws.JWSRegistry(algorithms=[each], strict_check_header=False)
            # The token as a whole is bounded.
            registry.max_header_length = registry.max_payload_length = self.max_token_bytes
            registry.max_signature_length = self.max_token_bytes
            registries[each] = registry
        object.__setattr__(self, "_registries", registries)

    async def verify(self, session: Session, token: str) -> dict[str, Any]:
        """Return the claims of a good token.

        Raises:
          _Refused: it is none.
          KeysUnavailable: that cannot be told now.
        """
        if len(token) > self.max_token_bytes:
            raise _Refused("the token is too long")
        if not _TOKEN.fullmatch(token):
            raise _Refused("the token is malformed")
        header = _object(token.partition(".")[0])
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self.algorithms:
            raise _Refused("the token's algorithm is not taken")
        if (kid is not None and not isinstance(kid, str)) or "crit" in header:
            raise _Refused("the token's header is not taken")
        keys = self.keys
        if isinstance(keys, Jwks):
            found = await keys.find(session, algorithm, kid)
        else:
            found = [key for key in keys if key.fits(algorithm, kid)]
        if not any(self._is_signed(token, algorithm, key) for key in found[:_TRIED]):
            raise _Refused("the token's signature is wrong")
        claims = _object(token.split(".")[1])
        self._check(claims)
        return claims

    def _is_signed(self, token: str, algorithm: str, key: Key) -> bool:
        jws, errors = joserfc("jws"), joserfc("errors")
        try:
            with warnings.catch_warnings() if algorithm == "EdDSA" else nullcontext():
                if algorithm == "EdDSA":  # which is only an older name for what is as good
                    warnings.simplefilter("ignore", errors.SecurityWarning)
                jws.deserialize_compact(token, key.key, [algorithm], self._registries[algorithm])
        except (errors.JoseError, ValueError, TypeError, ArithmeticError):
            return False
        return True

    def _check(self, claims: Mapping[str, Any]) -> None:
        """Refuse a token by its claims (RFC 7519 section 4.1)."""
        now = wall_time()
        expires, begins = _moment(claims, "exp"), _moment(claims, "nbf")
        _moment(claims, "iat")
        if expires is None and self.require_exp:
            raise _Refused("the token does not say when it expires")
        if expires is not None and now >= expires + self.leeway:
            raise _Refused("the token has expired")
        if begins is not None and now < begins - self.leeway:
            raise _Refused("the token is not valid yet")
        if self.issuer and claims.get("iss") not in self.issuer:
            raise _Refused("the token is of another issuer")
        audience = claims.get("aud", [])
        told = [audience] if isinstance(audience, str) else audience
        if not isinstance(told, list) or not all(isinstance(each, str) for each in told):
            raise _Refused("the claim aud is malformed")
        if (told or self.audience) and not set(told) & set(self.audience):
            raise _Refused("the token is for another audience")
        scopes = claims.get("scope", claims.get("scp", []))
        has = scopes.split(" ") if isinstance(scopes, str) else scopes
        if self.scopes and not (isinstance(has, list) and all(each in has for each in self.scopes)):
            raise _Refused("the token does not allow that", "insufficient_scope", 403)

    def to_tell(self, claims: Mapping[str, Any]) -> list[tuple[str, bytes]]:
        """Return the fields that tell the origin of the claims.

        Raises:
          _Refused: a claim is none that can stand in a field.
        """
        told = []
        for claim, name in self.forward:
            value = claims.get(claim)
            if value is None:
                continue
            if isinstance(value, (list, dict)) or _UNSAFE.search(str(value)):
                raise _Refused("a claim cannot be told to the origin")
            text = str(value).lower() if isinstance(value, bool) else str(value)
            if text != text.strip(" "):  # the field would tell of somebody else
                raise _Refused("a claim cannot be told to the origin")
            try:
                told.append((name, text.encode("utf-8")))
            except UnicodeEncodeError:
                raise _Refused("a claim cannot be told to the origin") from None
        return told

    def init(self) -> HttpModule:
        """Return the instance of a new request."""
        return BearerJwtModule(self)
