"""Requests that bring a user's name and password (RFC 7617)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import unicodedata
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio

from .._messages import RequestHeader
from ._abc import HttpModule, HttpModuleBuilder
from ._common import (
    Applies,
    Blinder,
    answer,
    challenge,
    exempt,
    flag,
    function,
    optional_field_name,
    realm,
    set_field,
    settled,
)

if TYPE_CHECKING:
    from ..proxy._session import Session

#: Whether a password is a user's, by a function of the user's.
CheckPassword = Callable[[str, str], "bool | Awaitable[bool]"]

#: The longest name and password that are looked at, in bytes as sent.
LONGEST = 2048
#: Good passwords that are remembered, and for how long in seconds: scrypt takes its time.
REMEMBERED = 1024
REMEMBERED_FOR = 300.0
#: Hashes that are computed at once: each takes 16 MiB and a thread.
HASHES_AT_ONCE = 2

_N, _R, _P = 2**14, 8, 5
_HASHED = re.compile(
    r"scrypt\$([0-9]{1,2})\$([0-9]{1,3})\$([0-9]{1,3})\$([A-Za-z0-9+/]+=*)\$([A-Za-z0-9+/]+=*)"
)
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    most = 128 * r * (n + p + 2) + (1 << 20)
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=most, dklen=32)


def hash_password(password: str) -> str:
    """Return what `BasicAuth` may keep in place of a password: scrypt (RFC 7914) with a salt.

    It takes some 0.2 s and 16 MiB, as does each check; a good password is remembered for five minutes.

    Returns:
      ``scrypt$14$8$5$SALT$HASH``; the first number is the cost, as a power of two.
    """
    salt = secrets.token_bytes(16)
    made = _scrypt(_normal(password), salt, _N, _R, _P)
    texts = [base64.b64encode(each).decode("ascii") for each in (salt, made)]
    return f"scrypt${_N.bit_length() - 1}${_R}${_P}${texts[0]}${texts[1]}"


@attrs.frozen
class _Hash:
    n: int
    r: int
    p: int
    salt: bytes
    made: bytes

    @classmethod
    def parse(cls, text: str) -> _Hash | None:
        match = _HASHED.fullmatch(text)
        if match is None:
            return None
        cost, r, p = int(match[1]), int(match[2]), int(match[3])
        if not (1 <= cost <= 20 and r and p and 128 * r * 2**cost <= 1 << 28):
            return None
        try:
            salt, made = (base64.b64decode(match[at], validate=True) for at in (4, 5))
        except binascii.Error:
            return None
        return cls(2**cost, r, p, salt, made) if len(made) == 32 else None

    def fits(self, password: str) -> bool:
        made = _scrypt(password, self.salt, self.n, self.r, self.p)
        return hmac.compare_digest(made, self.made)


def _normal(text: str) -> str:
    """Return text in the one form that all ways of typing it have (RFC 7617 section 2.1)."""
    return unicodedata.normalize("NFC", text)


def _users(value: Any) -> Any:
    return tuple(value.items()) if isinstance(value, Mapping) else value


def read_credentials(value: str) -> tuple[str, str] | None:
    """Return the user's name and password of an Authorization field; None where it has none."""
    scheme, _, token = value.partition(" ")
    token = token.strip(" ")
    if scheme.lower() != "basic" or not token or len(token) > LONGEST:
        return None
    try:
        text = base64.b64decode(token + "=" * (-len(token) % 4), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeError, ValueError):
        return None
    user, colon, password = text.partition(":")
    if not colon or _CONTROLS.search(text):
        return None
    return _normal(user), _normal(password)


class BasicAuthModule(HttpModule):
    """One request's part of `BasicAuth`."""

    def __init__(self, options: BasicAuth) -> None:
        self._options = options
        #: The user's name, None before the password was found to be right.
        self.user: str | None = None

    async def request_header_filter(self, session: Session, request: RequestHeader) -> bool:
        """Let a request of a user pass, answer all others."""
        options = self._options
        if exempt(options.applies, session, request, options.user_field):
            return False
        values = request.headers.get_all(b"authorization")
        if options.remove:
            request.headers.remove(b"authorization")
        if len(values) > 1:
            return await answer(session, 400, text="more than one Authorization field\n")
        found = read_credentials(values[0]) if values else None
        if found is not None and options.user_field is not None and found[0] != found[0].strip(" "):
            found = None  # the field would tell of somebody else
        if found is None or not await options.is_right(*found):
            parameters = [("realm", options.realm), ("charset", "UTF-8")]
            return await challenge(session, "Basic", parameters)
        self.user = found[0]
        if options.user_field is not None:
            set_field(request, options.user_field, self.user.encode("utf-8"))
        return False


@attrs.frozen(kw_only=True)
class BasicAuth(HttpModuleBuilder):
    """Lets only requests of users with their passwords pass (RFC 7617); all others get 401.

    Names and passwords are UTF-8. A request with two Authorization fields gets 400. Passwords are
    sent in clear text, so that this is good over TLS alone.

    Attributes:
      users: Passwords by the users' names: as they are, or as `hash_password` makes them, all of
        one kind. Or a function that gets a name and a password and tells whether it is right; it
        may be async.
      realm: What the browser shows the user.
      remove: Whether the origin gets the request without Authorization. A shared cache before the
        origin then no longer sees that a response is a user's: name the user in its key.
      user_field: The request field that tells the origin who it is, in UTF-8; what clients send in
        it is replaced. A name with blanks around it, which a field cannot tell, gets 401.
      applies: Tells of a session whether a password is asked for; None: always.
    """

    order = 600
    module_type = BasicAuthModule

    users: tuple[tuple[str, str], ...] | CheckPassword = attrs.field(converter=_users, repr=False)
    realm: str = attrs.field(validator=realm)
    remove: bool = attrs.field(default=True, validator=flag)
    user_field: str | None = attrs.field(default=None, validator=optional_field_name)
    applies: Applies | None = attrs.field(default=None, validator=function)
    _blind: Blinder = attrs.field(init=False, factory=Blinder, repr=False, eq=False)
    _plain: dict[str, bytes] = attrs.field(init=False, factory=dict, repr=False, eq=False)
    _hashed: dict[str, _Hash] = attrs.field(init=False, factory=dict, repr=False, eq=False)
    #: Digests of good names with their passwords, and when they were found to be.
    _good: OrderedDict[bytes, float] = attrs.field(
        init=False, factory=OrderedDict, repr=False, eq=False
    )
    _limiter: trio.CapacityLimiter = attrs.field(
        init=False, factory=partial(trio.CapacityLimiter, HASHES_AT_ONCE), repr=False, eq=False
    )

    def __attrs_post_init__(self) -> None:
        if callable(self.users):
            return
        users: Any = self.users
        if not isinstance(users, tuple) or not users:
            raise ValueError("users: a mapping of names to passwords, or a function, is right")
        for user, password in users:
            if not isinstance(user, str) or not user or ":" in user or _CONTROLS.search(user):
                raise ValueError(f"users has {user!r}: a name without ':' is right")
            if not isinstance(password, str) or not password:
                raise ValueError(f"users: the password of {user!r} is no text")
            if password.startswith("scrypt$"):
                made = _Hash.parse(password)
                if made is None:
                    raise ValueError(
                        f"users: the password of {user!r} is no hash: what hash_password returns "
                        "is right"
                    )
                self._hashed[_normal(user)] = made
            else:
                self._plain[_normal(user)] = self._blind(_normal(password).encode())
        if self._plain and self._hashed:
            raise ValueError(
                "users: all passwords hashed or none is right; otherwise the time tells which "
                "names there are"
            )

    async def is_right(self, user: str, password: str) -> bool:
        """Tell whether a password is the user's; that takes as long for a user there is not."""
        if callable(self.users):
            return bool(await settled(self.users(user, password)))
        if self._plain:
            digest = self._blind(password.encode())
            known = self._plain.get(user, b"\0" * len(digest))
            return hmac.compare_digest(known, digest)
        return await self._fits(user, password)

    async def _fits(self, user: str, password: str) -> bool:
        """Check a hashed password in a thread, unless it was found to be right just before."""
        digest = self._blind(user.encode(), password.encode())
        now = trio.current_time()
        if now < self._good.get(digest, -1.0):
            return True
        known = self._hashed.get(user)
        stand_in = known or next(iter(self._hashed.values()))
        fits = await trio.to_thread.run_sync(
            stand_in.fits, password, limiter=self._limiter, abandon_on_cancel=True
        )
        if known is None or not fits:
            return False
        self._good[digest] = now + REMEMBERED_FOR
        if len(self._good) > REMEMBERED:
            self._good.popitem(last=False)
        return True

    def init(self) -> HttpModule:
        """Return the instance of a new request."""
        return BasicAuthModule(self)
