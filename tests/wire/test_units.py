"""Amounts as people write them."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rota.wire import units
from rota.wire.units import Signal, UnitError

SIZES = [
    ("0", 0),
    ("1024B", 1024),
    ("10B", 10),
    ("2GB", 2 * 10**9),
    ("2GiB", 2 * 2**30),
    ("2 GiB", 2 * 2**30),
    ("2gib", 2 * 2**30),
    ("1.5KB", 1500),
    ("1.5TiB", 3 * 2**39),
    ("0.1KiB", 102),
    ("1PB", 10**15),
    ("8PiB", 2**53),
]
DURATIONS = [
    ("0", 0),
    ("0s", 0),
    ("250ms", 250),
    ("90s", 90_000),
    ("1h30m", 5_400_000),
    ("2d", 172_800_000),
    ("1.5h", 5_400_000),
    ("1d1h1m1s1ms", 90_061_001),
    ("0.25s", 250),
]
THOUSANDTHS = [
    ("0", 0),
    ("2", 2000),
    ("0.5", 500),
    ("1.25", 1250),
    ("0.001", 1),
    ("16.000", 16_000),
    ("00.5", 500),
]
SIGNALS = [
    ("TERM", Signal("TERM")),
    ("USR1@60s", Signal("USR1", 60_000)),
    ("INT@1m30s", Signal("INT", 90_000)),
]


@pytest.mark.parametrize(("text", "amount"), SIZES)
def test_sizes(text: str, amount: int) -> None:
    assert units.parse_bytes(text) == amount


@pytest.mark.parametrize(("text", "amount"), DURATIONS)
def test_durations(text: str, amount: int) -> None:
    assert units.parse_milliseconds(text) == amount


@pytest.mark.parametrize(("text", "amount"), THOUSANDTHS)
def test_thousandths(text: str, amount: int) -> None:
    assert units.parse_thousandths(text) == amount


@pytest.mark.parametrize(("text", "what"), SIGNALS)
def test_signals(text: str, what: Signal) -> None:
    assert units.parse_signal(text) == what


@pytest.mark.parametrize(
    ("parse", "text", "says"),
    [
        (units.parse_bytes, "2GBs", "'2GBs' is not a size; try 2GB or 2GiB"),
        (units.parse_bytes, "500M", "'500M' is not a size; try 500MB or 500MiB"),
        (units.parse_bytes, "2.5g", "'2.5g' is not a size; try 2.5GB or 2.5GiB"),
        (units.parse_bytes, "4", "'4' is not a size; try 4GB or 4GiB"),
        (units.parse_bytes, "4000", "'4000' is not a size; try 4000MB or 4000MiB"),
        (units.parse_bytes, "4294967296", "'4294967296' is not a size; try 4294967296B"),
        (units.parse_bytes, "lots", "'lots' is not a size; try 500MB or 2GiB"),
        (units.parse_bytes, "", "'' is not a size; try 500MB or 2GiB"),
        (units.parse_bytes, "-2GB", "'-2GB' is negative; the least is 0"),
        (units.parse_bytes, "1e9", "'1e9' is not a size; try 1GB or 1GiB"),
        (units.parse_bytes, "99999999999PiB", "'99999999999PiB' is far too large"),
        (units.parse_bytes, "٣GB", "'٣GB' is not a size; try 500MB or 2GiB"),
        (units.parse_milliseconds, "90", "'90' has no unit; try 90s"),
        (units.parse_milliseconds, "5 minutes", "'5 minutes' is not a duration; try 5m"),
        (units.parse_milliseconds, "1H", "'1H' is not a duration; try 1h"),
        (units.parse_milliseconds, "1:30:00", "'1:30:00' is not a duration; try 90s, 1h30m or 2d"),
        (units.parse_milliseconds, "30m1h", "'30m1h' is not a duration; try 90s, 1h30m or 2d"),
        (units.parse_milliseconds, "1h1h", "'1h1h' is not a duration; try 90s, 1h30m or 2d"),
        (units.parse_milliseconds, "", "'' is not a duration; try 90s, 1h30m or 2d"),
        (units.parse_milliseconds, "-1s", "'-1s' is negative; the least is 0"),
        (units.parse_milliseconds, "0.5ms", "'0.5ms' is not a whole number of milliseconds"),
        (units.parse_milliseconds, "9" * 40 + "d", f"'{'9' * 40}d' is far too large"),
        (units.parse_thousandths, "0.0005", "'0.0005' has more than three decimals; try 0.001"),
        (units.parse_thousandths, "1.23456", "'1.23456' has more than three decimals; try 1.235"),
        (units.parse_thousandths, "500m", "'500m' is not a number; try 0.5"),
        (units.parse_thousandths, "four", "'four' is not a number; try 2 or 0.5"),
        (units.parse_thousandths, "1e3", "'1e3' is not a number; try 2 or 0.5"),
        (units.parse_thousandths, ".5", "'.5' is not a number; try 2 or 0.5"),
        (units.parse_thousandths, "-1", "'-1' is negative; the least is 0"),
        (units.parse_thousandths, "9" * 30, f"'{'9' * 30}' is far too large"),
        (units.parse_thousandths, "9" * 99, f"'{'9' * 61}...' is not a number; try 2 or 0.5"),
        (units.parse_signal, "SIGTERM@60s", "'SIGTERM@60s' is not a signal; try TERM@60s"),
        (units.parse_signal, "term", "'term' is not a signal; try TERM"),
        (units.parse_signal, "15", "'15' is not a signal; try TERM or USR1@60s"),
        (units.parse_signal, "TERM@60", "'60' has no unit; try 60s"),
        (units.parse_signal, "TERM@", "'' is not a duration; try 90s, 1h30m or 2d"),
        (units.parse_bytes, "a\nb\x00", r"'a\nb\x00' is not a size; try 500MB or 2GiB"),
    ],
)
def test_what_is_none_is_refused_with_what_would_be_right(parse: object, text: str, says: str) -> None:
    assert callable(parse)
    with pytest.raises(UnitError) as error:
        parse(text)
    assert str(error.value) == says


@pytest.mark.parametrize(
    "parse", [units.parse_bytes, units.parse_milliseconds, units.parse_thousandths, units.parse_signal]
)
@given(
    text=st.text(max_size=80)
    | st.from_regex(r"-?[0-9]{1,30}(\.[0-9]{1,30})?[dhmsKMGTPiB@]{0,4}", fullmatch=True)
)
def test_any_text_is_an_amount_or_refused_in_one_line(parse: object, text: str) -> None:
    assert callable(parse)
    try:
        parse(text)
    except UnitError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 either is right


AMOUNTS = st.integers(0, 2**63 - 1) | st.integers(0, 10_000)


@given(
    AMOUNTS
    | st.builds(lambda n, unit: n * unit, st.integers(0, 5000), st.sampled_from([1000, 2**20, 2**30, 10**9]))
)
def test_printed_sizes_are_read_as_the_same(amount: int) -> None:
    assert units.parse_bytes(units.bytes_text(amount)) == amount


@given(AMOUNTS)
def test_printed_durations_are_read_as_the_same(amount: int) -> None:
    assert units.parse_milliseconds(units.milliseconds_text(amount)) == amount


@given(AMOUNTS)
def test_printed_thousandths_are_read_as_the_same(amount: int) -> None:
    assert units.parse_thousandths(units.thousandths_text(amount)) == amount


def test_texts_are_short() -> None:
    assert [units.bytes_text(n) for n in (0, 1, 1024, 2 * 2**30, 2 * 10**9, 1536 * 2**20, 1234567)] == [
        "0", "1B", "1KiB", "2GiB", "2GB", "1536MiB", "1234567B",
    ]  # fmt: skip
    assert [units.milliseconds_text(n) for n in (0, 250, 90_000, 5_400_000, 86_400_000)] == [
        "0", "250ms", "1m30s", "1h30m", "1d",
    ]  # fmt: skip
    assert [units.thousandths_text(n) for n in (0, 1, 500, 1000, 1250, -1500)] == [
        "0", "0.001", "0.5", "1", "1.25", "-1.5",
    ]  # fmt: skip


def test_tables_have_short_texts() -> None:
    sizes = (0, 1023, 1024, 1_500_000_000, 2**30, 150 * 2**30, 1023 * 2**30, 2**50)
    assert [units.bytes_about(n) for n in sizes] == [
        "0B", "1023B", "1KiB", "1.4GiB", "1GiB", "150GiB", "1023GiB", "1PiB",
    ]  # fmt: skip
    durations = (0, 999, 1_000, 9_940, 42_700, 61_000, 5_400_123, 90_061_001)
    assert [units.milliseconds_about(n) for n in durations] == [
        "0ms", "999ms", "1.0s", "9.9s", "42s", "1m1s", "1h30m", "1d1h",
    ]  # fmt: skip


def test_the_signals_are_those_of_linux() -> None:
    here = {one.name.removeprefix("SIG") for one in signal.Signals if "RT" not in one.name}
    aliases = {"CLD", "POLL", "IOT"}
    assert here - aliases <= units.SIGNALS
