"""Join tokens as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rota.core.model.token import ID_BYTES, RANDOM_BYTES, make, parse, parse_secret

RANDOM = st.binary(min_size=ID_BYTES + RANDOM_BYTES, max_size=ID_BYTES + RANDOM_BYTES)


@given(st.binary(min_size=32, max_size=32), RANDOM)
def test_what_is_made_is_read_back(fingerprint: bytes, random: bytes) -> None:
    secret, text = make(fingerprint, random)
    token = parse(f"  {text.upper()}\n")
    assert token is not None
    assert token.fingerprint == fingerprint
    assert parse_secret(token.secret) == secret
    assert len(text) == 100


def test_the_secret_is_not_in_what_is_stored() -> None:
    secret, text = make(bytes(32), bytes(range(25)))
    random = text.split("_")[2]
    assert random not in repr(secret)
    assert random.encode() not in secret.sha256


@pytest.mark.parametrize(
    "text", ["", "rota1_a_b_c", "rota2_" + "a" * 94, "x" * 10_000, "rota1_\0", "ü" * 101]
)
def test_other_texts_are_no_tokens(text: str) -> None:
    assert parse(text) is None
    assert parse_secret(text) is None
