"""The budgets of an HTTP/2 connection, in one table."""

from __future__ import annotations

import attrs


def _positive(_instance: object, attribute: attrs.Attribute[float], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{attribute.name}={value!r}: a number above 0 is right")


def _not_negative(_instance: object, attribute: attrs.Attribute[float], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"{attribute.name}={value!r}: a number, 0 or more, is right")


def _count(_instance: object, attribute: attrs.Attribute[int], value: object) -> None:
    if type(value) is not int or value < 0:
        raise ValueError(f"{attribute.name}={value!r}: a whole number, 0 or more, is right")


@attrs.frozen(kw_only=True)
class H2Limits:
    """The budgets of one HTTP/2 connection: what is over one ends it, with ENHANCE_YOUR_CALM mostly.

    ``statistics().limits_hit`` counts each by the name of its field, with ``h2_`` before it. The
    defaults are far from what any honest client does; they hold for connections to origins too.

    Attributes:
      reset_burst: Resets that come at once: RST_STREAM frames received, and those that the peer
        provokes (H2-02, H2-03).
      reset_rate: Resets that are added in a second.
      control_burst: PING, SETTINGS, PRIORITY, PRIORITY_UPDATE, GOAWAY, WINDOW_UPDATE and unknown
        frames that come at once (H2-07); from a server, RST_STREAM without an error too.
      control_rate: Such frames that are added in a second.
      window_credit: WINDOW_UPDATE frames that each DATA frame we sent pays for.
      max_window_credit: How many of them may be saved up.
      max_settings: Entries of a SETTINGS frame (H2-07).
      max_continuations: CONTINUATION frames of a field block (H2-04).
      max_block_bytes: Encoded bytes of a field block (H2-04).
      max_list_bytes: Decoded bytes of a field list, 32 added for each field (H2-05).
      max_empty_run: Empty frames in a row, this many are too many (H2-08).
      max_empty_minute: Empty frames in a minute, this many are too many (H2-08).
      max_unsent_frames: Frames that the peer provoked and does not read (H2-07).
      max_unsent_bytes: Their bytes (H2-07).
      max_refused: Refused streams, in multiples of the streams allowed, that come without a pause
        (H2-10).
      settings_timeout: Seconds for the peer's first SETTINGS, and for its acknowledgement of ours
        (H2-01).
      block_timeout: Seconds in which a field block must be whole (H2-04).
    """

    reset_burst: int = attrs.field(default=500, validator=_count)
    reset_rate: float = attrs.field(default=33.0, validator=_not_negative)
    control_burst: int = attrs.field(default=1000, validator=_count)
    control_rate: float = attrs.field(default=100.0, validator=_not_negative)
    window_credit: int = attrs.field(default=10, validator=_count)
    max_window_credit: int = attrs.field(default=10_000, validator=_count)
    max_settings: int = attrs.field(default=32, validator=_count)
    max_continuations: int = attrs.field(default=16, validator=_count)
    max_block_bytes: int = attrs.field(default=131072, validator=_count)
    max_list_bytes: int = attrs.field(default=262144, validator=_count)
    max_empty_run: int = attrs.field(default=10, validator=_count)
    max_empty_minute: int = attrs.field(default=100, validator=_count)
    max_unsent_frames: int = attrs.field(default=1000, validator=_count)
    max_unsent_bytes: int = attrs.field(default=65536, validator=_count)
    max_refused: int = attrs.field(default=10, validator=_count)
    settings_timeout: float = attrs.field(default=10.0, validator=_positive)
    block_timeout: float = attrs.field(default=15.0, validator=_positive)
