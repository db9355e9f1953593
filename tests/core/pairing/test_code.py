# SPDX-License-Identifier: Apache-2.0
"""The code of an invitation: hard to guess, easy to type, and its typing errors are found at once."""

from __future__ import annotations

import pytest

from splitee.errors import ConfigError
from splitee.pairing.code import ALPHABET, LENGTH, new_code, read_code


def test_a_code_has_80_bits_and_is_never_the_same() -> None:
    assert len(ALPHABET) ** LENGTH == 2**80
    codes = {new_code() for _ in range(1000)}
    assert len(codes) == 1000
    for place in range(LENGTH):
        assert {read_code(code)[place] for code in codes} == set(ALPHABET)


def test_it_is_read_however_it_was_typed() -> None:
    for _ in range(100):
        shown = new_code()
        code = read_code(shown)
        assert code == shown.replace("-", "")
        typed = shown.lower().replace("0", "o").replace("1", "l")
        assert read_code(typed) == read_code(typed.replace("-", " ")) == read_code(code) == code


def test_each_single_typing_error_is_found() -> None:
    code = read_code(new_code())
    for place, right in enumerate(code):
        for wrong in set(ALPHABET) - {right}:
            with pytest.raises(ConfigError, match="typing error"):
                read_code(code[:place] + wrong + code[place + 1 :])


def test_two_neighbours_that_were_exchanged_are_found_but_for_one_pair() -> None:
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
def test_what_is_no_code_is_said_in_one_line_that_does_not_show_it(text: str) -> None:
    with pytest.raises(ConfigError, match="expected 17 letters and digits") as caught:
        read_code(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200
