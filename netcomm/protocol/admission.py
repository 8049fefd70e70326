"""Who gets an ident, where a connection says one: a decision from plain facts, without any effect.

The reasons are in docs/decisions/0003-who-replaces-whom.md. `Sessions` carries the decision out.
"""

import enum
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Contender:
    """What counts of a connection when two have the same ident.

    dialled: whether this side has made it.
    boot_id: that of the process at the other side; None for a snakeMQ peer, which names none.
    connector: the number of that process's connector that made it; 0 where the other side has accepted it.
    """

    dialled: bool
    boot_id: bytes | None
    connector: int


@dataclass(frozen=True, slots=True)
class Present:
    """The connection that has the ident already.

    paused: whether it is not read now: nothing that shows that it lives can be heard.
    is_challenged: whether another connection waits already for it to show that it lives.
    """

    contender: Contender
    paused: bool
    is_challenged: bool


class Decision(enum.Enum):
    """What becomes of a connection that has said an ident."""

    ADMIT = enum.auto()
    """It gets the ident, which nobody has."""
    REPLACE = enum.auto()
    """It gets the ident at once; the present connection is to be closed."""
    CHALLENGE = enum.auto()
    """It waits; it gets the ident if the present connection does not show in time that it lives."""
    REFUSE_TAKEN = enum.auto()
    """It does not get the ident: another connection has it."""
    REFUSE_OWN = enum.auto()
    """It does not get the ident: this peer itself has it."""
    REFUSE_ENDED = enum.auto()
    """It does not get the ident: the process that has made it has said that it ends, and may be gone by now."""


def decide(
    newcomer: Contender,
    present: Present | None,
    *,
    is_own_ident: bool,
    own_boot_id: bytes,
    ended_boot_id: bytes | None = None,
) -> Decision:
    """Who gets an ident that a connection says.

    present: the connection that has it, None where nobody has.
    is_own_ident: whether it is the ident of this peer itself.
    ended_boot_id: that of the process that had the ident last, where it has said that it ends.
    """
    if is_own_ident:
        return Decision.REFUSE_OWN
    if ended_boot_id is not None and newcomer.boot_id == ended_boot_id:
        return Decision.REFUSE_ENDED
    if present is None:
        return Decision.ADMIT
    if _same_connector(newcomer, present.contender) or _wins_tie(newcomer, present.contender, own_boot_id):
        return Decision.REPLACE
    if present.is_challenged or present.paused:
        return Decision.REFUSE_TAKEN
    return Decision.CHALLENGE


def _same_connector(newcomer: Contender, present: Contender) -> bool:
    """Whether one connector of one process has made both: it has given up the first, even if this side has not heard.

    Number 0 is an accepted connection: it is not for the accepting side to say which one has been given up.
    """
    if newcomer.boot_id is None or newcomer.connector == 0:
        return False
    return (newcomer.boot_id, newcomer.connector) == (present.boot_id, present.connector)


def _wins_tie(newcomer: Contender, present: Contender, own_boot_id: bytes) -> bool:
    """Whether two processes have dialled each other, and the newcomer was made by the one with the higher boot id.

    Both sides decide so, and keep the same one of the two.
    """
    if newcomer.boot_id is None or newcomer.boot_id != present.boot_id or newcomer.dialled == present.dialled:
        return False
    return newcomer.dialled == (own_boot_id > newcomer.boot_id)
