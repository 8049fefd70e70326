"""A process that receives the messages of `tests.faults.sender`, and may be killed at any moment.

`main` takes a dict:

    storage         the URL of its storage
    place           where to listen: host, port
    received        the side file: a line for each message, "NUMBER LIFE REDELIVERED", written from the callback
    life            a number for this process
    delay           seconds that each callback takes, after it has written
    acknowledge_at_once  break netcomm: acknowledge what has just come in, before the callbacks, and before the storage
                         knows
    crash           a point of `tests.faults.crash` and the number of a message, or None

It runs until it is killed.
"""

import json
import signal
import sys
import time
from typing import Any

from netcomm import Message, SnakemqListener
from netcomm.protocol.frames import Data
from netcomm.protocol.inbox import Inbox, InStream
from tests.faults import crash
from tests.faults.helpers import Line
from tests.faults.sender import LIMITS, number_of, payload


def acknowledge_at_once() -> None:
    """Let every message count as handed over when it comes in: the promise that the tests are about is broken."""
    accept = Inbox.accept

    def accept_and_acknowledge(self: Inbox, data: Data) -> tuple[InStream, Data]:
        state, fresh = accept(self, data)
        state.handed_seq = state.next_seq
        state.ack_due = True
        return state, fresh

    Inbox.accept = accept_and_acknowledge  # type: ignore[method-assign]


def main(config: dict[str, Any]) -> None:
    if config.get("acknowledge_at_once"):
        acknowledge_at_once()
    point, crash_number = config.get("crash") or (None, None)
    if point is not None:
        crash.arm(point, crash_number, payload(crash_number))
    received = Line(config["received"])
    life, delay = config["life"], config["delay"]

    def on_message(ident: str, message: Message) -> None:
        number = number_of(message.data)
        received(f"{number} {life} {int(message.redelivered)}")
        if point == "in the callback" and number == crash_number:
            crash.die()
        if delay:
            time.sleep(delay)

    peer = SnakemqListener("receiver", *config["place"], storage=config["storage"], limits=LIMITS)
    peer.on_message.add(on_message)
    with peer:
        signal.pause()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
