# SPDX-License-Identifier: Apache-2.0
"""The code of an invitation: hard to guess, easy to type, and typing errors are detected."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from splitee.errors import ConfigError
from splitee.pairing.code import ALPHABET, LENGTH, new_code, read_code


def test_codes_have_80_bits_and_do_not_repeat() -> None:
    assert len(ALPHABET) ** LENGTH == 2**80
    codes = {new_code() for _ in range(1000)}
    assert len(codes) == 1000
    for place in range(LENGTH):
        assert {read_code(code)[place] for code in codes} == set(ALPHABET)


def test_code_is_read_despite_case_separators_and_similar_letters() -> None:
    for _ in range(100):
        shown = new_code()
        code = read_code(shown)
        assert code == shown.replace("-", "")
        typed = shown.lower().replace("0", "o").replace("1", "l")
        assert read_code(typed) == read_code(typed.replace("-", " ")) == read_code(code) == code


def test_every_single_typing_error_is_detected() -> None:
    code = read_code(new_code())
    for place, right in enumerate(code):
        for wrong in set(ALPHABET) - {right}:
            with pytest.raises(ConfigError, match="typing error"):
                read_code(code[:place] + wrong + code[place + 1 :])


def test_swapped_neighbours_are_detected_except_0_and_z() -> None:
    body = "AB" * 8
    for first in ALPHABET:
        for second in set(ALPHABET) - {first}:
            right = next(code for last in ALPHABET if (code := _if_code(first + second + body[2:] + last)))
            exchanged = _if_code(right[1] + right[0] + right[2:])
            assert (exchanged is not None) == ({first, second} == {"0", "Z"})


def _if_code(text: str) -> str | None:
    try:
        return read_code(text)
    except ConfigError:
        return None


@pytest.mark.parametrize("text", ["", "-", "ABCD", "U" * 17, "é" * 17, "A" * 18, "A" * 100_000])
def test_invalid_code_is_refused_in_one_short_line(text: str) -> None:
    with pytest.raises(ConfigError, match="expected 17 letters and digits") as caught:
        read_code(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "change",
    [
        lambda code: code[:-1],
        lambda code: code + "A",
        lambda code: code.replace("7", "U"),
        lambda code: code.replace("7", "8"),
    ],
    ids=["too short", "too long", "invalid letter", "typing error"],
)
def test_invalid_code_is_not_shown_in_its_refusal(change: Callable[[str], str]) -> None:
    """Whoever sees the screen or the log could guess what is wrong with it."""
    body = "7K4FQTR9M2BDH5WC"
    [code] = filter(None, (_if_code(body + last) for last in ALPHABET))
    shown = change("-".join((code[:4], code[4:8], code[8:12], code[12:])))
    with pytest.raises(ConfigError) as caught:
        read_code(shown)
    assert not [group for group in shown.split("-") if group in str(caught.value).upper()]
