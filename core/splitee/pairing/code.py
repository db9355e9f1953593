# SPDX-License-Identifier: Apache-2.0
"""The code of an invitation: 80 random bits as 16 characters, and a check character against typing errors."""

from __future__ import annotations

import secrets

from splitee.errors import ConfigError

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32: no I, L, O, U
LENGTH = 16  # random characters
_TYPED_FOR = str.maketrans("ILO", "110", "- ")


def new_code() -> str:
    """A code as it is shown: XXXX-XXXX-XXXX-XXXXC."""
    body = "".join(secrets.choice(ALPHABET) for _ in range(LENGTH))
    text = body + _check_character(body)
    return "-".join((text[0:4], text[4:8], text[8:12], text[12:]))


def read_code(text: str) -> str:
    """The code's 17 characters, however it was typed: in small letters, without hyphens, O for 0.

    Raises:
        ConfigError: it is not a code, or has a typing error.
    """
    code = text.upper().translate(_TYPED_FOR)
    if len(code) != LENGTH + 1 or not set(code) <= set(ALPHABET):
        raise ConfigError(
            f"CODE: expected {LENGTH + 1} letters and digits as `splitee broker invite` shows them, "
            f"such as {'-'.join(['XXXX'] * 3)}-XXXXX, got {len(code)} characters"
        )
    if code[-1] != _check_character(code[:-1]):
        raise ConfigError("CODE: there is a typing error in it; compare it with what the hub shows")
    return code


def _check_character(body: str) -> str:
    """Luhn's algorithm modulo 32: it finds each single error, and most exchanges of two neighbours."""
    total = 0
    for place, character in enumerate(reversed(body)):
        value = ALPHABET.index(character) * (1 if place % 2 else 2)
        total += value // len(ALPHABET) + value % len(ALPHABET)
    return ALPHABET[-total % len(ALPHABET)]
