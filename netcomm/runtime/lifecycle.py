"""`Lifecycle`: how far the life of a peer has come, and what may be asked of it then."""

import enum

from netcomm.errors import LifecycleError


class Phase(enum.Enum):
    """How far the life of a peer has come."""

    UNMADE = "is being made"
    NEW = "has not been started"
    RUNNING = "is running"
    TERMINATING = "is being terminated"
    TERMINATED = "has been terminated"
    FORKED = "belongs to the parent process"


# By itself: each look through the Enum takes time, see `netcomm.message`.
RUNNING, FORKED, TERMINATED = Phase.RUNNING, Phase.FORKED, Phase.TERMINATED


class Lifecycle:
    """The phase of a peer; changed with the peer's mutex held, and read from any thread.

    ident: the peer's name.
    failure: what has ended the peer, where a defect has.
    """

    __slots__ = ("failure", "ident", "phase")

    def __init__(self, ident: str) -> None:
        self.ident = ident
        self.phase = Phase.UNMADE
        self.failure: BaseException | None = None

    def check(self, *allowed: Phase) -> None:
        """Raise LifecycleError where the phase is none of those that are allowed."""
        if self.phase in allowed:
            return
        if self.failure is not None:
            raise LifecycleError(f"peer {self.ident!r} has failed: {self.failure!r}") from self.failure
        raise LifecycleError(f"peer {self.ident!r} {self.phase.value}")

    def check_running(self) -> None:
        """Raise LifecycleError where the peer is not running."""
        self.check(RUNNING)

    def check_process(self) -> None:
        """Raise LifecycleError in a forked child, where a thread that does not exist may hold any lock for ever.

        To be called before a lock is asked for.
        """
        if self.phase is FORKED:
            self.check_running()
