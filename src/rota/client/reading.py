"""Where the reading of output stands, so that it goes on there when a connection was lost."""

from rota.client.messages import OutputStream, ReadOutputResponse, ReadOutputsResponse
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


class ReadingMany:
    """The output of many tasks, which comes in ascending order of index, attempt, stream and offset."""

    def __init__(self, request: job_service_pb2.ReadOutputsRequest) -> None:
        # What is to be asked now.
        self.request = request
        self._seen = (-1, 0, 0, 0)

    def take(self, answer: ReadOutputsResponse) -> None:
        """Notes an answer and cuts it down to what is new."""
        new = [each for each in answer.outputs if self._is_new(each)]
        if len(new) < len(answer.outputs):
            del answer.outputs[:]
            answer.outputs.extend(new)
        self.request.first_index = max(self.request.first_index, answer.sent_below)

    def _is_new(self, output: ReadOutputResponse) -> bool:
        *of, offset = self._seen
        if [output.index, output.attempt, output.stream] == of and output.offset < offset:
            output.data = output.data[offset - output.offset :]
            output.offset = offset
            output.gap_bytes = 0
        end = (output.index, output.attempt, output.stream, output.offset + len(output.data))
        if end < self._seen or (end == self._seen and not output.end):
            return False
        self._seen = end
        return True
