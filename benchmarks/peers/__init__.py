"""What is compared: a module for each, written as its users would write it, and as fast as they would.

Each has classes for what it takes part in, which run in processes of their own:

- `Receiver(check, address)`: listens at `address`, the one given or one that is free; takes messages, see `Checking`.
- `Sender(address, ident)`: connects. `send(payloads)` returns when the receiver has got them all, and the sender
  knows.
- `Echo()`: listens at `address`; takes messages, and answers each with itself. It and the receiver may be told where.
- `Caller(address)`: connects. `round_trips(payloads)` sends them one at a time, each when the one before it has come
  back; returns the seconds that each took.
- `Backlog(folder)`: stores messages that are to be sent, and listens at `address`. `store(payloads)` does the former;
  `drain()` returns when a receiver has come and got them all.
- `BacklogReceiver(folder)`: `connect(address)` lets it take messages.

An address is a port, or an endpoint as ZeroMQ has them, or a list of these. Where there is a server between the two,
`server` is its port.
"""

from typing import Any

from benchmarks.payloads import Check

Address = Any


class Checking:
    """One that takes messages: `expect` says which, before they are sent; `finish` returns when they are there.

    Where messages come in on a thread of the peer's own, finishing is waiting for that. Others take them in `finish`.
    """

    def __init__(self, check: Check | None = None) -> None:
        self.check = Check(0, 0) if check is None else check

    def expect(self, check: Check) -> None:
        self.check = check

    def finish(self) -> None:
        self.check.complete.wait()
