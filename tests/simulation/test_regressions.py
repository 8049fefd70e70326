"""Defects that the simulator has found in netcomm: what showed each passes now, and shows it where it is planted."""

import pytest

from tests.simulation.__main__ import replay_command, search_command
from tests.simulation.mutations import REGRESSIONS, Mutation
from tests.simulation.schedule import run


@pytest.mark.parametrize("mutation", REGRESSIONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_a_defect_of_the_past_is_gone_and_would_be_found_again(mutation: Mutation) -> None:
    assert mutation.seed is not None
    violation = run(mutation.seed).violation
    assert violation is None, f"{violation}\nreplay: {replay_command(mutation.seed)}"
    assert mutation.shown_by([mutation.seed]), (
        f"seed {mutation.seed} does not show it any more; if the simulator has changed, remember the seed that this"
        f" finds: {search_command(mutation)}"
    )
