"""The oracle finds defects that are there: each of a catalogue is planted, and has to be found."""

import pytest

from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.schedule import run

_SEEDS = 1000


def test_the_catalogue_is_long_enough_and_names_each_once() -> None:
    assert len(MUTATIONS) >= 30
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_planted_defect_is_found(mutation: Mutation) -> None:
    with mutation.planted():
        if any(run(seed).violation is not None for seed in range(_SEEDS)):
            return
    pytest.fail(f"no schedule below {_SEEDS} finds: {mutation.name}")
