"""Receive files from file_transfer_connector.py, and answer with what became of each.

In one terminal:    python file_transfer_listener.py --folder received
In another:         python file_transfer_connector.py picture.jpg film.mkv

A file comes in pieces. Each message is a line of JSON and a piece; the last one has the hash of the whole. The pieces
go to a temporary file, which gets its name when the hash is right; a file of that name is replaced. Anybody who
reaches the port can send files: listen only where that is welcome. Ctrl-C ends it.
"""

import argparse
import hashlib
import json
import secrets
from pathlib import Path

from netcomm import SnakemqListener


def safe_name(name: str) -> str:
    """The last part of a name that a stranger chose: nothing is written outside of the folder."""
    name = name.replace("\\", "/").rpartition("/")[2]
    name = "".join(char for char in name if char.isprintable())
    return "unnamed" if name in ("", ".", "..") else name


class Incoming:
    """A file of which not everything has come."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f".incoming-{secrets.token_hex(8)}"
        self.size = 0
        self.hash = hashlib.sha256()

    def add(self, piece: bytes) -> None:
        """Append the next piece."""
        # Opened for each piece: a sender that never comes back leaves no open file.
        with self.path.open("ab") as file:
            file.write(piece)
        self.hash.update(piece)
        self.size += len(piece)

    def finish(self, target: Path, sha256: str) -> None:
        """Give the file its name, if it is what the sender has."""
        if self.hash.hexdigest() != sha256:
            raise ValueError("the hash is wrong")
        self.path.replace(target)


class Receiver:
    """Puts pieces together, one file at a time from each sender."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.incoming: dict[str, Incoming] = {}  # by the sender's ident
        self.failed: set[str] = set()  # idents: what is left of a file that has failed is passed over

    def receive(self, ident: str, data: bytes) -> dict[str, object] | None:
        """Take a message; returns the answer, one for each file: when it is complete, or has failed."""
        name = "unnamed"
        try:
            head, _, piece = data.partition(b"\n")
            header = json.loads(head)
            name = safe_name(header["name"])
            if header["offset"] == 0:
                self.discard(ident)  # what the sender did not finish before
                self.failed.discard(ident)
                self.incoming[ident] = Incoming(self.folder)
            if ident in self.failed:
                return None
            file = self.incoming.get(ident)
            if file is None or file.size != header["offset"]:
                raise ValueError("what comes before is missing")
            file.add(piece)
            if "sha256" not in header:
                return None
            file.finish(self.folder / name, header["sha256"])
            del self.incoming[ident]
            return {"name": name, "size": file.size, "sha256": header["sha256"]}
        # A full disk, or a message of some other program; the other senders go on.
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.discard(ident)
            self.failed.add(ident)
            return {"name": name, "error": f"{type(error).__name__}: {error}"}

    def discard(self, ident: str) -> None:
        """Remove what has come of a sender's present file."""
        file = self.incoming.pop(ident, None)
        if file is not None:
            file.path.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="localhost", help="the address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=4002, help="0 picks a free one (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default="received", help="where files go (default: %(default)s)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)

    listener = SnakemqListener("files", args.host, args.port)
    receiver = Receiver(args.folder)

    @listener.on_recv.add
    def received(ident: str, data: bytes) -> None:
        answer = receiver.receive(ident, data)
        if answer is not None:
            print(f"{ident}: {answer}", flush=True)
            listener.send(ident, json.dumps(answer).encode(), ttl=60)

    with listener:
        print(f"listening at port {listener.address[1]}", flush=True)
        try:
            listener.join()  # until it is terminated, or Ctrl-C
        except KeyboardInterrupt:
            print("end")
    for ident in list(receiver.incoming):
        receiver.discard(ident)


if __name__ == "__main__":
    main()
