"""`protocol.diagnosis`: the log warns of messages that wait for an ident that nobody has, once."""

import logging

import pytest

from netcomm.limits import Limits
from tests.unit.helpers import Net, established_raw, pair, warnings


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "netcomm")


def test_a_wrong_ident_is_warned_of_once_with_both_idents(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    one, _, _ = pair(net)
    one.send("bbb", b"x")
    net.advance(4.9)
    assert warnings(caplog) == []
    net.advance(0.2)
    (warning,) = warnings(caplog)
    assert "'bbb'" in warning
    assert "'b'" in warning
    one.send("bbb", b"y")
    net.advance(3600)
    assert len(warnings(caplog)) == 1


def test_nothing_is_warned_of_while_nobody_is_connected(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    host = net.host("a")
    host.send("bbb", b"x")
    net.advance(3600)
    assert warnings(caplog) == []
    net.connect(host, net.host("b"))
    net.advance(4.9)
    assert warnings(caplog) == []
    net.advance(0.2)
    assert len(warnings(caplog, "'bbb'")) == 1
    assert len(warnings(caplog)) == 1


def test_nothing_is_warned_of_when_the_ident_comes_in_time_or_nothing_waits(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    one, _, _ = pair(net)
    late = net.host("late")
    one.send("late", b"x")
    one.send("gone", b"x", ttl=1)
    net.advance(4)
    net.connect(late, one)
    net.advance(100)
    assert warnings(caplog) == []
    assert late.payloads() == [b"x"]


def test_a_peer_that_was_connected_and_stays_away_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    hub, one, other = net.host("hub"), net.host("b"), net.host("c")
    for _ in range(2):
        wire_ = net.connect(one, hub)
        if not other.ends:
            net.connect(other, hub)
        net.settle()
        hub.send("b", b"x")
        net.settle()
        wire_.cut()
        net.wires.remove(wire_)
        hub.send("b", b"y")
        net.advance(6)
    # Once for each time: it was connected in between.
    assert len(warnings(caplog, "'b'")) == 2


def test_of_a_peer_that_was_forgotten_nothing_is_left(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    host = net.host("a", Limits(max_idle_peers=1))
    host.send("b", b"x", ttl=1)
    net.advance(2)  # it has expired; nobody has looked yet
    for number in range(3):
        established_raw(net, host, f"other-{number}").lose()
    assert "b" not in host.messaging.peers.stats()
    established_raw(net, host, "staying")
    host.send("b", b"y")
    net.advance(4.9)
    assert warnings(caplog) == []
    net.advance(0.2)
    assert len(warnings(caplog, "'b'")) == 1
