"""`WallClock`: the time of messages in a storage, over changes of the system's clock.

A storage keeps when a message was sent as seconds since the epoch: nothing else means the same to the next process. But
the system's clock is set now and then: by a few milliseconds, or by decades, on a board without a battery. So:

- It never goes back. Where the system's clock is set back, this one goes on. Messages live no longer for it.
- Where the system's clock is set forward, this one jumps after it, so that what is sent from then on has the right
  time. What was sent before has a time that is too early, and would expire too early: `age` leaves the jump out.

It reads no clock: every method that needs the time is handed `now`, in seconds of a clock that is never set, and
`system`, in seconds since the epoch, as the system's clock shows them at the same moment.
"""

from bisect import bisect_left

# So far may the system's clock be ahead before this one jumps: each jump has to be remembered.
_JUMP_S = 0.1


class WallClock:
    """Seconds since the epoch that never go back."""

    __slots__ = ("_ahead", "_jumped", "_times")

    def __init__(self) -> None:
        self._ahead = 0.0  # of the clock that is never set
        self._times: list[float] = []  # what it showed just before each jump
        self._jumped = [0.0]  # how far it has jumped in all: before each jump, and behind the last one

    def start(self, now: float, system: float, newest: float) -> None:
        """Start it at the system's time, but not before `newest`, the newest time that is in the storage."""
        self._ahead = max(system, newest) - now

    def follow(self, now: float, system: float) -> float:
        """Look at the system's clock; returns the time."""
        jump = system - now - self._ahead
        if jump > _JUMP_S:
            self._times.append(now + self._ahead)
            self._jumped.append(self._jumped[-1] + jump)
            self._ahead += jump
        return now + self._ahead

    def at(self, now: float) -> float:
        """The time, as far as the system's clock has been followed."""
        return now + self._ahead

    def age(self, since: float, now: float) -> float:
        """How many seconds have passed since a time of this clock. 0 where that time is still to come."""
        jumped = self._jumped[-1] - self._jumped[bisect_left(self._times, since)]
        return max(0.0, self.at(now) - since - jumped)
