"""Amounts as people write and read them."""

from rota.wire.units import (
    UnitError,
    bytes_about,
    bytes_text,
    milliseconds_about,
    milliseconds_text,
    parse_bytes,
    parse_milliseconds,
    parse_thousandths,
    thousandths_text,
)

__all__ = [
    "UnitError",
    "bytes_about",
    "bytes_text",
    "milliseconds_about",
    "milliseconds_text",
    "parse_bytes",
    "parse_milliseconds",
    "parse_thousandths",
    "thousandths_text",
]
