"""Two programs that were written for snakeMQ, carried over: JSON messages between a "server" and a "client".

In one terminal:    python snakemq_style.py server
In another:         python snakemq_style.py client

What was snakeMQ's `Link`, `Packeter` and `Messaging` is one object here, and the loop `while True: link.loop()` is its
own thread. Either may be started first, and snakeMQ programs may be at the other end. In containers, let the server
listen with --host 0.0.0.0, and give the client the server's name: --host server. Ctrl-C ends it.
"""

import argparse
import json
import logging

from netcomm import Peer, SnakemqConnector, SnakemqListener

logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(levelname)s [%(name)s] %(message)s")
logger = logging.getLogger("snakemq_style")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=["server", "client"])
    parser.add_argument("--host", default="localhost", help="where the server listens (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8765, help="(default: %(default)s)")
    args = parser.parse_args()

    peer: Peer
    if args.role == "server":
        peer = server = SnakemqListener("server", args.host, args.port)
        other, value = "client", {"type": "execute", "value": "abc"}
        logger.info("listening at port %d", server.address[1])
    else:
        peer = SnakemqConnector("client", args.host, args.port)
        other, value = "server", {"type": "status", "value": "ready"}

    @peer.on_connect.add
    def connected(ident: str) -> None:
        logger.info("connected: %s", ident)

    @peer.on_disconnect.add
    def disconnected(ident: str) -> None:
        logger.info("disconnected: %s", ident)

    @peer.on_recv.add
    def received(ident: str, data: bytes) -> None:
        logger.info("received from %s: %s", ident, json.loads(data))

    with peer:
        # The other one need not be there yet: the message waits for it, for ten minutes.
        peer.send(other, json.dumps(value).encode("utf-8"), ttl=600)
        try:
            peer.join()  # until it is terminated, or Ctrl-C
        except KeyboardInterrupt:
            logger.info("end")


if __name__ == "__main__":
    main()
