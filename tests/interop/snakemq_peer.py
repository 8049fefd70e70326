"""A real snakeMQ peer, for the tests to run as a process of its own and to drive through its standard streams.

It imports snakeMQ and the standard library only. Its one argument is a JSON object:

    ident               its name
    listen | connect    [host, port]; port 0 picks one
    reconnect_interval  seconds between attempts to connect
    keepalive_interval, keepalive_wait  snakeMQ's settings of these names; without the first there is no keep-alive
    poll_timeout        seconds that the loop waits at the most
    delay               seconds that each message's callback takes
    report_frames       whether to tell of each ping and pong that arrives

Commands come in on the standard input, one JSON object a line:

    {"cmd": "send", "to": ident, "size": n, "seed": n, "count": n, "ttl": s, "flags": n}
    {"cmd": "block"}, {"cmd": "release"}    messages' callbacks wait between the two
    {"cmd": "stop"}                         close everything and end

What happens goes to the standard output, one JSON object a line, told apart by "event": ready, connect, disconnect,
queued, blocked, message, ping, pong, error, crash.
"""

import hashlib
import json
import os
import queue
import random
import sys
import threading
import time
import traceback
import warnings

# snakeMQ says `count is not 0`, and compilers have come to warn of that.
warnings.simplefilter("ignore", SyntaxWarning)

from snakemq.link import Link  # noqa: E402
from snakemq.message import Message  # noqa: E402
from snakemq.messaging import FRAME_TYPE_P0NG, FRAME_TYPE_PING, Messaging  # noqa: E402
from snakemq.packeter import Packeter  # noqa: E402

_output_lock = threading.Lock()


def tell(event, **details):
    """Write one line, at once: what was told before the process is killed can be read after it."""
    line = json.dumps({"event": event, **details}).encode() + b"\n"
    with _output_lock:
        while line:
            line = line[os.write(1, line) :]


class SnakemqPeer:
    def __init__(self, ident, poll_timeout=0.02, delay=0.0, report_frames=False, **settings):
        self.poll_timeout = poll_timeout
        self.delay = delay
        self.stopping = False
        self.open = threading.Event()
        self.open.set()
        self.to_send = queue.SimpleQueue()

        self.link = Link()
        packeter = Packeter(self.link)
        self.messaging = Messaging(ident, "", packeter)
        self.messaging.keepalive_interval = settings.get("keepalive_interval")
        self.messaging.keepalive_wait = settings.get("keepalive_wait", 0.5)
        self.messaging.on_connect.add(lambda conn_id, ident: tell("connect", ident=ident))
        self.messaging.on_disconnect.add(lambda conn_id, ident: tell("disconnect", ident=ident))
        self.messaging.on_error.add(lambda conn_id, error: tell("error", text=repr(error)))
        self.messaging.on_message_recv.add(self.receive)
        self.link.on_loop_pass.add(self.look_for_stop)
        if report_frames:
            packeter.on_packet_recv.add(self.report_frame)

        if "listen" in settings:
            address = self.link.add_listener(tuple(settings["listen"]))
        else:
            address = self.link.add_connector(tuple(settings["connect"]), settings.get("reconnect_interval", 0.05))
        tell("ready", address=address)

    def receive(self, conn_id, ident, message):
        if not self.open.is_set():
            tell("blocked", uuid=message.uuid.hex())
            self.open.wait()
        if self.delay:
            time.sleep(self.delay)
        tell("message", ident=ident, **describe(message))

    def report_frame(self, conn_id, packet):
        if packet[0] == FRAME_TYPE_PING:
            tell("ping")
        elif packet[0] == FRAME_TYPE_P0NG:
            tell("pong")

    def look_for_stop(self):
        # Here, and not in the thread that reads commands: `loop` would undo a stop that came just before it.
        if self.stopping:
            self.link.stop()

    def send(self):
        """Feed snakeMQ from a thread of its own: its bell blocks the one that rings while the loop is held up."""
        while True:
            command = self.to_send.get()
            for number in range(command.get("count", 1)):
                data = random.Random(command.get("seed", 0) + number).randbytes(command["size"])
                message = Message(data, ttl=command.get("ttl"), flags=command.get("flags", 0))
                tell("queued", **describe(message))
                self.messaging.send_message(command["to"], message)

    def obey(self):
        for line in sys.stdin:
            command = json.loads(line)
            match command["cmd"]:
                case "send":
                    self.to_send.put(command)
                case "block":
                    self.open.clear()
                case "release":
                    self.open.set()
                case "stop":
                    self.stopping = True
                    self.link.wakeup_poll()
        if not self.stopping:
            os._exit(1)  # whoever started this process has gone

    def run(self):
        threading.Thread(target=self.send, daemon=True).start()
        threading.Thread(target=self.obey, daemon=True).start()
        while not self.stopping:
            try:
                self.link.loop(self.poll_timeout)
            except Exception:
                # snakeMQ's loop raises when a connection ends at an unlucky moment: a KeyError if it is reset, or
                # refused for its ident, while more of its frames are to be handled; a RuntimeError if keep-alive
                # closes it. The connection is gone by then, and going on is what a program on top of snakeMQ has to
                # do. No callback of ours raises.
                tell("crash", text=traceback.format_exc())
        self.link.cleanup()


def describe(message):
    return {
        "uuid": message.uuid.hex(),
        "size": len(message.data),
        "sha256": hashlib.sha256(message.data).hexdigest(),
        "ttl": message.ttl,
        "flags": message.flags,
    }


if __name__ == "__main__":
    SnakemqPeer(**json.loads(sys.argv[1])).run()
