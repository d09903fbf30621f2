"""The standard streams, as a shell leaves them: closed by `>&-`, or a file on a full disk."""

import io
import os
import sys
from typing import Any


def mend() -> None:
    """To be called before anything opens a file, whose number could be a closed stream's.

    What is written to a closed standard output fails, as it does for every program.
    """
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, mode)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    encoding = sys.stderr.encoding if sys.stderr else "utf-8"
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_Errors(2, "w", closefd=False)), encoding, "backslashreplace", line_buffering=True
    )


class _Errors(io.FileIO):
    """Standard error. Where it cannot be written there is nobody to be told, and the command goes on."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)
