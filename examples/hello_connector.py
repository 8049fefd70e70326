"""Say hello to hello_listener.py, and print its answer.

    python hello_connector.py
    python hello_connector.py --host some.machine --ident bob "good morning"

The listener may be started later: the message waits for it.
"""

import argparse
import queue
import sys

from netcomm import SnakemqConnector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", default="hello", help="what to say (default: %(default)s)")
    parser.add_argument("--host", default="localhost", help="where the listener is (default: %(default)s)")
    parser.add_argument("--port", type=int, default=4002, help="(default: %(default)s)")
    parser.add_argument("--ident", default="bob", help="this program's name (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=30, help="seconds to wait for the answer (default: 30)")
    args = parser.parse_args()

    bob = SnakemqConnector(args.ident, args.host, args.port, encoding="utf-8")
    answers: queue.Queue[str] = queue.Queue()
    bob.on_recv.add(lambda ident, text: answers.put(f"{ident}: {text}"))

    with bob:
        bob.send("niess", args.text)
        try:
            print(answers.get(timeout=args.timeout))
        except queue.Empty:
            sys.exit("no answer")


if __name__ == "__main__":
    main()
