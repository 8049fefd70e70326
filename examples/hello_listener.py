"""Print what arrives, and answer it.

In one terminal:    python hello_listener.py
In another:         python hello_connector.py

Between two machines: --host 0.0.0.0 here, and --host with this machine's name there. Ctrl-C ends it.
"""

import argparse

from netcomm import SnakemqListener


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="localhost", help="the address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=4002, help="0 picks a free one (default: %(default)s)")
    args = parser.parse_args()

    niess = SnakemqListener("niess", args.host, args.port, encoding="utf-8")

    @niess.on_recv.add
    def received(ident: str, text: str) -> None:
        print(f"{ident}: {text}", flush=True)
        niess.send(ident, f"hello, {ident}")

    with niess:
        print(f"listening at port {niess.address[1]}", flush=True)
        try:
            niess.join()  # until it is terminated, or Ctrl-C
        except KeyboardInterrupt:
            print("end")


if __name__ == "__main__":
    main()
