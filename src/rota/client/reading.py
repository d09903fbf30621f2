"""Where the reading of an attempt's output stands, so that it goes on there when a connection was lost."""

from rota.client.messages import OutputStream, ReadOutputResponse
from rota.wire.gen.v1 import job_service_pb2


class Reading:
    """One attempt's output, both streams or one."""

    def __init__(self, request: job_service_pb2.ReadOutputRequest) -> None:
        self._request = request
        self._seen: dict[OutputStream.ValueType, int] = {}

    def request(self) -> job_service_pb2.ReadOutputRequest:
        """What is to be asked now: both streams from where the one is that is behind."""
        if self._seen and (self._request.stream or len(self._seen) == 2):
            self._request.tail_lines = 0
            self._request.offset = min(self._seen.values())
        return self._request

    def take(self, answer: ReadOutputResponse) -> bool:
        """Notes an answer and cuts it down to what is new; False where nothing is."""
        if answer.attempt:
            self._request.attempt = answer.attempt
        end = answer.offset + len(answer.data)
        seen = self._seen.get(answer.stream, answer.offset)
        if answer.offset < seen:
            answer.data = answer.data[seen - answer.offset :]
            answer.offset = seen
            # A gap stands ahead of the data, so it has been told.
            answer.gap_bytes = 0
        self._seen[answer.stream] = max(seen, end)
        return bool(answer.data or answer.gap_bytes or answer.end or answer.unavailable)
