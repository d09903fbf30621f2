"""Stands in for the link: passes bytes between the supervisor and a test, and at the end does as a link does.

python relay_link.py --home HOME --test PORT --fd N
"""

import argparse
import selectors
import socket
from pathlib import Path

from rota.agent.cleanup import kill_journaled_trees


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--test", type=int, required=True)
    parser.add_argument("--fd", type=int, required=True)
    given = parser.parse_args()
    supervisor = socket.socket(fileno=given.fd)
    try:
        test = socket.create_connection(("127.0.0.1", given.test))
    except ConnectionError:
        # The test is over.
        return
    selector = selectors.DefaultSelector()
    selector.register(supervisor, selectors.EVENT_READ, test)
    selector.register(test, selectors.EVENT_READ, supervisor)
    while True:
        for key, _ in selector.select():
            source = key.fileobj
            assert isinstance(source, socket.socket)
            try:
                data = source.recv(65536)
                if data:
                    key.data.sendall(data)
                    continue
            except ConnectionError:
                data = b""
            if source is supervisor:
                kill_journaled_trees(given.home)
            return


if __name__ == "__main__":
    main()
