"""A small chat window: two of them talk to each other.

In one terminal:    python chat_window.py niess --listen
In another:         python chat_window.py bob

Widgets may be touched by the main thread alone. So the peer has no thread for its callbacks: tkinter's main loop
watches its descriptor, and calls `dispatch` when something waits.
"""

import argparse

from netcomm import Peer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ident", help="your name")
    parser.add_argument("--listen", action="store_true", help="wait for the other one, which connects")
    parser.add_argument("--host", default="localhost", help="where the one that listens is (default: %(default)s)")
    parser.add_argument("--port", type=int, default=4002, help="(default: %(default)s)")
    args = parser.parse_args()

    peer = Peer(args.ident, encoding="utf-8", dispatch="manual")
    if args.listen:
        peer.add_listener(args.host, args.port)
    else:
        peer.add_connector(args.host, args.port)
    with peer:
        show_window(peer)


def show_window(peer: Peer) -> None:
    import tkinter  # here, as not every Python has it

    root = tkinter.Tk()
    root.title(peer.local_ident)
    lines = tkinter.Listbox(root, width=60, height=20)
    entry = tkinter.Entry(root)
    lines.pack(fill="both", expand=True)
    entry.pack(fill="x")
    entry.focus()

    def show(line: str) -> None:
        lines.insert("end", line)
        lines.see("end")

    def send(event: object) -> None:
        for ident in peer.peers:
            peer.send(ident, entry.get(), timeout=0)  # rather than keep the window waiting
        show(f"{peer.local_ident}: {entry.get()}")
        entry.delete(0, "end")

    entry.bind("<Return>", send)
    peer.on_connect.add(lambda ident: show(f"({ident} is here)"))
    peer.on_disconnect.add(lambda ident: show(f"({ident} is gone)"))
    peer.on_recv.add(lambda ident, text: show(f"{ident}: {text}"))

    if not hasattr(root, "createfilehandler"):  # Windows

        def look() -> None:
            peer.dispatch()
            root.after(50, look)

        look()
        root.mainloop()
        return
    root.createfilehandler(peer, tkinter.READABLE, lambda *_: peer.dispatch())
    try:
        root.mainloop()
    finally:
        root.deletefilehandler(peer)  # before its descriptor is closed


if __name__ == "__main__":
    main()
