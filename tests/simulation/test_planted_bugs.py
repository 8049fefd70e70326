"""The oracle finds defects that are there: each of a catalogue is planted, and has to be found."""

import pytest

from tests.simulation.__main__ import search_command
from tests.simulation.mutations import CATALOGUE, MUTATIONS, Mutation

_SEEDS = 1000


def test_the_catalogue_is_long_enough_and_names_each_once() -> None:
    assert len(MUTATIONS) >= 55
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("mutation", CATALOGUE, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_planted_defect_is_found(mutation: Mutation) -> None:
    remembered = [] if mutation.seed is None else [mutation.seed]
    seeds = range(mutation.first, mutation.first + _SEEDS)
    assert mutation.shown_by([*remembered, *seeds]), (
        f"no schedule in {seeds} finds: {mutation.name}\nsearch: {search_command(mutation)}"
    )
