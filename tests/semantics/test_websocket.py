from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioproxy.semantics._websocket import Deflate, deflate_agreed, deflate_offers

NAME = "permessage-deflate"


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ([], None),
        ([NAME], NAME),
        ([f"{NAME}; client_max_window_bits"], f"{NAME}; client_max_window_bits"),
        ([f'{NAME}; server_max_window_bits="10"'], f'{NAME}; server_max_window_bits="10"'),
        ([f"{NAME};server_no_context_takeover , x-webkit-deflate-frame"], f"{NAME};server_no_context_takeover"),
        (["x-one; a=b", f"{NAME}; client_max_window_bits=15, {NAME}"], f"{NAME}; client_max_window_bits=15, {NAME}"),
        ([f"{NAME}; server_max_window_bits"], None),
        ([f"{NAME}; server_max_window_bits=7, {NAME}"], NAME),
        ([f"{NAME}; server_max_window_bits=010"], None),
        ([f"{NAME}; server_max_window_bits=16"], None),
        ([f"{NAME}; client_no_context_takeover=1"], None),
        ([f"{NAME}; client_no_context_takeover; client_no_context_takeover"], None),
        ([f"{NAME}; mystery"], None),
        (["", NAME], NAME),
        ([f"{NAME},,"], None),
        ([f'{NAME}; server_max_window_bits="1'], None),
    ],
)  # fmt: skip
def test_offers_that_we_can_carry_out_are_kept(values: list[str], kept: str | None) -> None:
    assert deflate_offers(values) == kept


@pytest.mark.parametrize(
    ("values", "agreed"),
    [
        ([], None),
        ([NAME], Deflate()),
        ([f"{NAME}; client_no_context_takeover"], Deflate(client_no_context_takeover=True)),
        ([f"{NAME}; server_no_context_takeover"], Deflate(server_no_context_takeover=True)),
        ([f"{NAME}; client_max_window_bits=9"], Deflate(client_max_window_bits=9)),
        ([f'{NAME}; server_max_window_bits="8"'], Deflate(server_max_window_bits=8)),
    ],
)
def test_what_was_agreed_on_is_read(values: list[str], agreed: Deflate | None) -> None:
    assert deflate_agreed(values) == agreed


@pytest.mark.parametrize(
    "value",
    [
        "x-one",
        f"{NAME}, {NAME}",
        f"{NAME}; client_max_window_bits",
        f"{NAME}; mystery",
        f"{NAME}; server_max_window_bits=99",
        f"{NAME}; ",
        "",
    ],
)
def test_an_answer_that_means_nothing_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="Sec-WebSocket-Extensions"):
        deflate_agreed([value])


@given(st.text(st.sampled_from(f'{NAME};,=" 0189_abcx'), max_size=60))
def test_any_text_is_read_or_refused(value: str) -> None:
    kept = deflate_offers([value])
    assert kept is None or deflate_offers([kept]) == kept
    try:
        deflate_agreed([value])
    except ValueError:
        pass
