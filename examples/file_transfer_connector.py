"""Send files to file_transfer_listener.py.

    python file_transfer_connector.py picture.jpg film.mkv
    python file_transfer_connector.py --host some.machine film.mkv

A file goes in pieces of 1 MiB, so its size does not matter. When the network goes away meanwhile, the rest follows
when it is back. The exit code is 0 if the listener has every file, with the right hash.
"""

import argparse
import hashlib
import json
import queue
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from netcomm import Delivery, SnakemqConnector

PIECE_BYTES = 1024 * 1024
PIECES_UNDER_WAY = 16  # enough to keep the network busy, and all that is in memory


def pieces(path: Path) -> Iterator[tuple[dict[str, object], bytes]]:
    """The pieces of a file with their headers; the last header has the hash of the whole."""
    sha256 = hashlib.sha256()
    offset = 0
    with path.open("rb") as file:
        while True:
            piece = file.read(PIECE_BYTES)
            sha256.update(piece)
            header: dict[str, object] = {"name": path.name, "offset": offset}
            if len(piece) < PIECE_BYTES:  # the last one, which may be empty
                yield {**header, "sha256": sha256.hexdigest()}, piece
                return
            yield header, piece
            offset += len(piece)


class Sender:
    """Sends files, one after the other."""

    def __init__(self, connector: SnakemqConnector, timeout: float) -> None:
        self.connector = connector
        self.timeout = timeout
        self.answers: queue.Queue[dict[str, object]] = queue.Queue()
        connector.on_recv.add(lambda ident, data: self.answers.put(json.loads(data)))

    def send(self, path: Path) -> bool:
        """Send a file; returns whether the listener has it."""
        size = path.stat().st_size
        under_way: deque[tuple[Delivery, int]] = deque()  # pieces, and where in the file they end
        sent: dict[str, object] = {}
        end = 0
        for sent, piece in pieces(path):
            end += len(piece)
            data = json.dumps(sent).encode() + b"\n" + piece
            under_way.append((self.connector.send("files", data), end))
            if len(under_way) > PIECES_UNDER_WAY:
                self._wait_for(*under_way.popleft(), size)
            if not self.answers.empty():  # before the end: it has failed
                break
        while under_way:
            self._wait_for(*under_way.popleft(), size)
        return self._check_answer(path, sent)

    def _wait_for(self, delivery: Delivery, end: int, size: int) -> None:
        delivery.wait()
        if sys.stderr.isatty():
            print(f"\r{end / size if size else 1:4.0%} ", end="", file=sys.stderr, flush=True)

    def _check_answer(self, path: Path, sent: dict[str, object]) -> bool:
        try:
            answer = self.answers.get(timeout=self.timeout)
        except queue.Empty:
            answer = {"error": "no answer"}
        if "error" not in answer and answer["sha256"] != sent["sha256"]:
            answer["error"] = "the listener has something else"
        print(f"{path}: {answer.get('error', 'ok')}")
        return "error" not in answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--host", default="localhost", help="where the listener is (default: %(default)s)")
    parser.add_argument("--port", type=int, default=4002, help="(default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=30, help="seconds to wait for the listener (default: 30)")
    args = parser.parse_args()

    with SnakemqConnector(None, args.host, args.port) as connector:  # its own name for each run
        if not connector.wait_connected("files", args.timeout):
            sys.exit(f"no listener at {args.host}:{args.port}")
        sender = Sender(connector, args.timeout)
        try:
            arrived = [sender.send(path) for path in args.files]
        except OSError as error:
            sys.exit(str(error))
        except KeyboardInterrupt:
            sys.exit("interrupted")
    sys.exit(0 if all(arrived) else 1)


if __name__ == "__main__":
    main()
