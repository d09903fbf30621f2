"""When tokens and keys of requests are to be forgotten, by the wall clock."""

import heapq
from collections.abc import Mapping

from rota.core.cluster.records import TOKEN_KEPT_MS, Idempotency, Record, TokenConfig


def expiry_ms(record: TokenConfig | Idempotency) -> int:
    """When a record is to be forgotten, by the wall clock."""
    if isinstance(record, TokenConfig):
        return record.expires_at_ms + TOKEN_KEPT_MS
    return record.expires_at_ms


class Expiries:
    """Of the tokens and keys among these records, which is next; what is put anew or dropped is not."""

    def __init__(self, records: Mapping[str, Record]) -> None:
        self._records = records
        self._heap: list[tuple[int, str]] = []

    def put(self, key: str, old: TokenConfig | Idempotency | None, record: TokenConfig | Idempotency) -> None:
        """The record with this key is put in place of another, or of none."""
        if old is None or expiry_ms(old) != expiry_ms(record):
            heapq.heappush(self._heap, (expiry_ms(record), key))

    def next(self) -> tuple[int, str] | None:
        """What is to be forgotten next: when, and its key."""
        while self._heap:
            at_ms, key = self._heap[0]
            record = self._records.get(key)
            if isinstance(record, TokenConfig | Idempotency) and expiry_ms(record) == at_ms:
                return at_ms, key
            heapq.heappop(self._heap)
        return None
