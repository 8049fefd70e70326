"""The vectors find defects in other implementations: each of a catalogue is planted in the peer in Go."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from netcomm.testing import conformance
from tests.conformance import go_peer, test_go_peer
from tests.conformance.defects import DEFECTS, Defect
from tests.conformance.go_peer import GoPeer

PAGE = conformance.PAGE.read_text(encoding="utf-8")
VECTORS = list(conformance.all_vectors(PAGE))
ECHO_VECTORS = conformance.echo_vectors(PAGE)
WAIT_S = 1.0  # for an answer that a defect keeps back


@pytest.fixture
def wrong_program(defect: Defect, program: Path, tmp_path: Path) -> Path:
    """The peer in Go with a defect. (`program` sees to it that there is Go.)"""
    sources = Path(shutil.copytree(go_peer.SOURCES, tmp_path / "go"))
    defect.plant(sources)
    wrong = tmp_path / "gopher"
    go_peer.build(sources, wrong)
    return wrong


def test_the_catalogue_names_each_defect_once() -> None:
    assert len({defect.name for defect in DEFECTS}) == len(DEFECTS)


@pytest.mark.parametrize(
    "defect", [defect for defect in DEFECTS if defect.vectors], ids=lambda defect: defect.name.replace(" ", "-")
)
def test_vectors_find_a_defect(defect: Defect, wrong_program: Path) -> None:
    for beginning in defect.vectors:
        complaints = []
        for vectors, arguments in ((VECTORS, []), (ECHO_VECTORS, ["-echo"])):
            meant = [vector for vector in vectors if vector.name.startswith(beginning)]
            if meant:
                with GoPeer(wrong_program, "-listen", "127.0.0.1:0", *arguments) as gopher:
                    line = partial(conformance.SocketLine, gopher.address, WAIT_S)
                    complaints += [conformance.judge(vector, line, bool(arguments)) for vector in meant]
        assert any(complaints), beginning


@pytest.mark.parametrize(
    "defect", [defect for defect in DEFECTS if defect.conversation], ids=lambda defect: defect.name.replace(" ", "-")
)
def test_a_conversation_finds_a_defect_that_no_vector_can_show(
    defect: Defect, wrong_program: Path, tmp_path: Path
) -> None:
    cut = test_go_peer.test_nothing_is_lost_doubled_or_reordered_between_a_netcomm_connector_and_a_listener_in_go
    killed = test_go_peer.test_what_a_killed_listener_in_go_has_not_acknowledged_comes_again_marked
    ends = test_go_peer.test_when_a_listener_in_go_whose_ident_was_made_up_ends_what_waits_for_it_is_discarded
    made_up = test_go_peer.test_when_a_netcomm_peer_whose_ident_was_made_up_ends_a_peer_in_go_discards_what_waits_for_it
    converse = {
        "cut": lambda: cut(wrong_program, tmp_path, "volatile", 100),
        "killed": lambda: killed(wrong_program, tmp_path, "volatile", 100),
        "ends": lambda: ends(wrong_program, 0),
        "made up": lambda: made_up(wrong_program, 0),
    }
    with pytest.raises((AssertionError, ValueError)):
        converse[defect.conversation]()
