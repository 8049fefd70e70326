"""`protocol.admission`: who gets an ident, in each combination of facts."""

from collections.abc import Callable, Iterator
from itertools import product

import pytest

from netcomm.protocol.admission import Contender, Decision, Present, decide

LOW, OWN, HIGH = b"\x01" * 16, b"\x02" * 16, b"\x03" * 16

# Each connection that there can be: this side has made it, or the other side; a netcomm peer or a snakeMQ peer. The
# other side's process is an earlier or a later one than this side's, and number 0 means that it has accepted.
CONTENDERS = [
    Contender(dialled, boot_id, connector)
    for dialled in (False, True)
    for boot_id, connector in [(None, 0), *product((LOW, HIGH), (0, 1, 2))]
]


def presents() -> Iterator[Present | None]:
    yield None
    for contender, paused, is_challenged in product(CONTENDERS, (False, True), (False, True)):
        yield Present(contender, paused, is_challenged)


def is_same_process(one: Contender, other: Contender) -> bool:
    return one.boot_id is not None and one.boot_id == other.boot_id


def keeps_the_newcomer(one: Contender, other: Contender) -> bool:
    """Both sides have dialled, and the newcomer is the connection of the process with the higher boot id."""
    assert one.boot_id is not None
    maker_of_newcomer, other_maker = (OWN, one.boot_id) if one.dialled else (one.boot_id, OWN)
    return is_same_process(one, other) and one.dialled != other.dialled and maker_of_newcomer > other_maker


# The first row that fits says what is decided.
Fits = Callable[[Contender, Present], bool]
TABLE: list[tuple[str, Fits, Decision]] = [
    (
        "the other side's connector has made both: it has given up the first",
        lambda new, old: is_same_process(new, old.contender) and new.connector == old.contender.connector != 0,
        Decision.REPLACE,
    ),
    (
        "both sides have dialled: the connection of the higher process stays",
        lambda new, old: new.boot_id is not None and keeps_the_newcomer(new, old.contender),
        Decision.REPLACE,
    ),
    ("another one waits already", lambda new, old: old.is_challenged, Decision.REFUSE_TAKEN),
    ("the present one is not read", lambda new, old: old.paused, Decision.REFUSE_TAKEN),
    ("nobody knows", lambda new, old: True, Decision.CHALLENGE),
]


@pytest.mark.parametrize("newcomer", CONTENDERS, ids=str)
def test_each_combination_is_decided_as_the_table_says(newcomer: Contender) -> None:
    for present, is_own_ident in product(presents(), (False, True)):
        if is_own_ident:
            expected = Decision.REFUSE_OWN
        elif present is None:
            expected = Decision.ADMIT
        else:
            expected = next(decision for _, fits, decision in TABLE if fits(newcomer, present))
        decided = decide(newcomer, present, is_own_ident=is_own_ident, own_boot_id=OWN)
        assert decided == expected, (newcomer, present, is_own_ident)


@pytest.mark.parametrize("newcomer", CONTENDERS, ids=str)
def test_a_process_that_has_said_that_it_ends_is_not_admitted_again(newcomer: Contender) -> None:
    for present in presents():
        decided = decide(newcomer, present, is_own_ident=False, own_boot_id=OWN, ended_boot_id=LOW)
        expected = decide(newcomer, present, is_own_ident=False, own_boot_id=OWN)
        assert decided == (Decision.REFUSE_ENDED if newcomer.boot_id == LOW else expected)


def test_each_row_of_the_table_decides_something() -> None:
    deciding = set()
    for newcomer, present in product(CONTENDERS, presents()):
        if present is not None:
            deciding.add(next(name for name, fits, _ in TABLE if fits(newcomer, present)))
    assert deciding == {name for name, _, _ in TABLE}


@pytest.mark.parametrize("low_is_first", [False, True])
def test_of_two_that_have_dialled_each_other_both_sides_keep_the_same_connection(low_is_first: bool) -> None:
    """Each side hears of the connections in an order of its own."""
    kept = set()
    for own, other in ((LOW, HIGH), (HIGH, LOW)):
        made_here, made_there = Contender(True, other, 0), Contender(False, other, 1)
        # By the process that has made it.
        connections = {own: made_here, other: made_there}
        first, second = (LOW, HIGH) if low_is_first else (HIGH, LOW)
        present = Present(connections[first], False, False)
        decided = decide(connections[second], present, is_own_ident=False, own_boot_id=own)
        kept.add(second if decided is Decision.REPLACE else first)
    assert kept == {HIGH}
