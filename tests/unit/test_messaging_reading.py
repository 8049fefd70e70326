"""`protocol.messaging`: a connection that is not read for a while, since callbacks are slow, is not blamed for it."""

from netcomm.limits import Limits
from tests.unit import helpers
from tests.unit.helpers import Net

LIMITS = Limits(window_bytes=1000, keepalive_idle_s=15, keepalive_wait_s=10)
PING = (helpers.PING, b"")


def test_the_silence_of_the_other_side_is_counted_from_when_reading_goes_on() -> None:
    net = Net()
    host = net.host("a", LIMITS)
    host.holding = True
    end = net.raw(host)
    net.exchange(end, helpers.legacy_handshake("b"), helpers.message(bytes(2000)))
    assert end.paused
    net.advance(14)
    host.hand_over()
    net.settle()
    assert not end.paused
    assert PING not in net.exchange(end)
    net.advance(14)
    assert PING not in net.exchange(end)
    net.advance(2)
    assert net.exchange(end) == [PING]
    net.advance(8)
    assert not end.gone
    net.advance(2)
    assert end.gone
