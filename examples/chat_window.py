"""A chat window: two of them talk to each other.

In one terminal:    python chat_window.py niess bob --listen
In another:         python chat_window.py bob niess

A message is marked "…" until the window of the other shows it, and then "✓". It waits where the other is away.

Widgets may be touched by the main thread alone. So the peer has no thread for its callbacks: tkinter's main loop
watches its descriptor, and calls `dispatch` when something waits.
"""

import argparse
import signal

from netcomm import Delivery, NetcommError, Peer

WAITS, DELIVERED, LOST = "…", "✓", "✗"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ident", help="your name")
    parser.add_argument("other", help="the name of the one to talk to")
    parser.add_argument("--listen", action="store_true", help="wait for the other one, which connects")
    parser.add_argument("--host", default="localhost", help="where the one that listens is (default: %(default)s)")
    parser.add_argument("--port", type=int, default=4002, help="(default: %(default)s)")
    args = parser.parse_args()

    try:
        peer = Peer(args.ident, encoding="utf-8", dispatch="manual")
        add_place = peer.add_listener if args.listen else peer.add_connector
        add_place(args.host, args.port)
    except NetcommError as error:
        parser.exit(1, f"{error}\n")
    peer.start()
    try:
        show_window(peer, args.other)
    finally:
        peer.terminate(timeout=1)  # it would give what waits for the other 5 s, which is long for a closed window


def show_window(peer: Peer, other: str) -> None:
    """Show the window until it is closed."""
    import tkinter  # here, as not every Python has it

    root = tkinter.Tk()
    root.title(f"{peer.local_ident}: chat with {other}")
    status = tkinter.Label(root, anchor="w", padx=6, pady=3, width=1)  # it has the width of the others
    lines = tkinter.Text(root, width=44, height=10, wrap="word", padx=6, pady=6, font="TkDefaultFont", state="disabled")
    entry = tkinter.Entry(root)
    status.pack(side="top", fill="x")
    entry.pack(side="bottom", fill="x")
    lines.pack(fill="both", expand=True)
    lines.tag_configure("event", foreground="gray40")
    lines.tag_configure("mark", foreground="forest green")
    entry.focus()
    waiting: dict[str, Delivery] = {}  # by the tag of the mark

    def write(place: str, end: str, text: str, *tags: str) -> None:
        lines["state"] = "normal"  # nobody else writes
        lines.replace(place, end, text, tags)
        lines["state"] = "disabled"
        lines.see("end")

    def show(text: str, *tags: str) -> None:
        write("end", "end", text, *tags)

    def show_event(text: str) -> None:
        here = peer.peers
        status["text"] = f"Here: {', '.join(here) or 'nobody'}."
        if other not in here:
            status["text"] += f" What you write waits for {other}."
        show(f"{text}\n", "event")

    def send(event: object) -> None:
        text = entry.get()
        if not text:
            return
        try:
            delivery = peer.send(other, text, timeout=0)  # rather than keep the window waiting for room
        except NetcommError as error:
            show_event(str(error))
            return
        tag = f"message {delivery.uuid.hex()}"
        waiting[tag] = delivery
        entry.delete(0, "end")
        show(f"{peer.local_ident}: {text} ")
        show(WAITS, "mark", tag)
        show("\n")

    def look() -> None:
        """Mark the messages that have ended. Where the main loop can't watch a descriptor, also dispatch."""
        if not can_watch:
            peer.dispatch()
        for tag, delivery in list(waiting.items()):
            if delivery.done:
                write(f"{tag}.first", f"{tag}.last", DELIVERED if delivery.wait(0) else LOST, "mark")
                del waiting[tag]
        root.after(100, look)

    entry.bind("<Return>", send)
    peer.on_connect.add(lambda ident: show_event(f"{ident} is here"))
    peer.on_disconnect.add(lambda ident: show_event(f"{ident} is away"))
    peer.on_error.add(lambda error: show_event(str(error)))
    peer.on_recv.add(lambda ident, text: show(f"{ident}: {text}\n"))
    show_event(f"You are {peer.local_ident}.")
    signal.signal(signal.SIGINT, lambda *_: root.quit())  # Ctrl-C in the terminal

    can_watch = hasattr(root, "createfilehandler")  # Windows has none: there, `after` calls `look`, which dispatches
    if can_watch:
        root.createfilehandler(peer, tkinter.READABLE, lambda *_: peer.dispatch())
    look()
    root.mainloop()
    if can_watch:
        root.deletefilehandler(peer)  # before its descriptor is closed


if __name__ == "__main__":
    main()
