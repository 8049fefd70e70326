"""A process that sends numbered persistent messages, and may be killed at any moment.

`main` takes a dict:

    storage     the URL of its storage
    place       where the receiver listens: host, port
    accepted    the side file: a line for each message, "NUMBER", written after `send` has returned
    first       the number of the first message; it must lie above those that an earlier process may have used
    count       how many lines the side file is to have; it has some of them already where this is a restart
    seed        decides which messages are sent one by one, and which several at a time; None: each is sent when the
                one before it has been delivered
    crash       a point of `tests.faults.crash` and the number of a message, or None

It ends once everything that is in the storage has been delivered.
"""

import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

from netcomm import Limits, SnakemqConnector
from tests.faults import crash
from tests.faults.helpers import DEADLINE_S, Line

LIMITS = Limits(reconnect_min_s=0.005, reconnect_max_s=0.02)


def payload(number: int) -> bytes:
    """The message with a number: the number, its hash, and some bytes."""
    text = b"%d" % number
    return text + b" " + hashlib.sha256(text).hexdigest().encode() + b" " + text * (number % 50)


def number_of(data: bytes) -> int:
    """The number of a message; raises ValueError where it is not what was sent."""
    number = int(data.split(b" ", 1)[0])
    if data != payload(number):
        raise ValueError(f"message {number} is not what was sent")
    return number


def main(config: dict[str, Any]) -> None:
    if config.get("crash"):
        point, crash_number = config["crash"]
        crash.arm(point, crash_number, payload(crash_number))
    left = config["count"] - len(Path(config["accepted"]).read_text().splitlines())
    accepted = Line(config["accepted"])
    one_by_one = config["seed"] is None
    sizes = (1,) if one_by_one else (1, 1, 1, 7, 30)
    chance = random.Random(config["seed"])
    number = config["first"]
    peer = SnakemqConnector("sender", *config["place"], True, storage=config["storage"], limits=LIMITS)
    with peer:
        while left > 0:
            size = min(left, chance.choice(sizes))
            numbers = range(number, number + size)
            if size == 1:
                delivery = peer.send("receiver", payload(number))
            else:
                peer.send_many("receiver", [payload(each) for each in numbers])
            accepted(*map(str, numbers))
            number += size
            left -= size
            if one_by_one and not delivery.wait(DEADLINE_S):
                raise SystemExit(f"message {number} is {delivery.state}")
        if not peer.flush(DEADLINE_S):
            raise SystemExit(f"not delivered within {DEADLINE_S:g} s: {peer.stats()}")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
