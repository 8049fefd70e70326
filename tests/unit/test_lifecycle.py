"""`netcomm.runtime.lifecycle`: what may be asked of a peer in which phase of its life."""

import pytest

from netcomm import LifecycleError
from netcomm.runtime.lifecycle import Lifecycle, Phase

PHASES = list(Phase)


@pytest.mark.parametrize("phase", PHASES)
def test_only_a_peer_that_runs_is_running(phase: Phase) -> None:
    life = Lifecycle("bob")
    life.phase = phase
    if phase is Phase.RUNNING:
        life.check_running()
    else:
        with pytest.raises(LifecycleError, match=f"'bob' {phase.value}"):
            life.check_running()


@pytest.mark.parametrize("phase", PHASES)
def test_only_a_forked_child_is_another_process(phase: Phase) -> None:
    life = Lifecycle("bob")
    life.phase = phase
    if phase is Phase.FORKED:
        with pytest.raises(LifecycleError, match="belongs to the parent process"):
            life.check_process()
    else:
        life.check_process()


def test_several_phases_may_be_allowed() -> None:
    life = Lifecycle("bob")
    with pytest.raises(LifecycleError, match="is being made"):
        life.check(Phase.NEW, Phase.RUNNING)
    life.phase = Phase.NEW
    life.check(Phase.NEW, Phase.RUNNING)


def test_who_asks_too_much_of_a_peer_that_has_failed_hears_the_cause() -> None:
    life = Lifecycle("bob")
    life.phase = Phase.TERMINATED
    life.failure = ValueError("the cause")
    with pytest.raises(LifecycleError, match="the cause") as caught:
        life.check_running()
    assert caught.value.__cause__ is life.failure
