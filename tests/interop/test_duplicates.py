"""Two peers with one ident."""

import logging

import pytest

from netcomm import ConnectionRefusedByPeer, Limits, SnakemqConnector, SnakemqListener
from tests.interop.helpers import LOCALHOST, WAIT_S, SnakemqProcess, Watch, digest

FAST = Limits(keepalive_wait_s=1, reconnect_min_s=0.02, reconnect_max_s=0.1)


def test_second_snakemq_peer_of_an_ident_is_refused_until_the_first_has_gone(caplog: pytest.LogCaptureFixture) -> None:
    with SnakemqListener("net", LOCALHOST, 0, limits=FAST) as net:
        watch = Watch(net)
        with SnakemqProcess("snake", connect=net.address) as first:
            watch.connects.wait_for_count(1)
            with SnakemqProcess("snake", connect=net.address) as second:
                second.wait_for("disconnect", 3)  # it does not give up
                assert net.send("snake", b"to the first").wait(WAIT_S)
                assert first.wait_for("message")[0]["sha256"] == digest(b"to the first")
                assert first.of("disconnect") == []
                assert watch.disconnects.items() == []
                warnings = [
                    record.getMessage()
                    for record in caplog.records
                    if record.levelno == logging.WARNING and "'snake' is connected already" in record.getMessage()
                ]
                assert len(warnings) == 1, "one warning, and not one for each attempt"

                first.kill()
                assert watch.disconnects.wait_for_count(1) == ["snake"]
                assert net.send("snake", b"to the second").wait(WAIT_S)
                assert [event["sha256"] for event in second.wait_for("message")] == [digest(b"to the second")]


def test_snakemq_peer_takes_the_place_of_one_that_does_not_answer() -> None:
    with SnakemqListener("net", LOCALHOST, 0, limits=FAST) as net:
        watch = Watch(net)
        with SnakemqProcess("snake", connect=net.address) as first:
            watch.connects.wait_for_count(1)
            first.suspend()
            unanswered = net.send("snake", b"to whoever it is")
            with SnakemqProcess("snake", connect=net.address) as second:
                watch.connects.wait_for_count(2)
                assert unanswered.wait(WAIT_S)
                assert second.wait_for("message")[0]["uuid"] == unanswered.uuid.hex()
                second.send("net", size=10, seed=3)
                watch.messages.wait_for_count(1)

                first.resume()
                first.wait_for("connect", 2)
                first.wait_for("disconnect", 2)  # now it is the second to come
                assert net.send("snake", b"to the second").wait(WAIT_S)
                second.wait_for("message", 2)
                assert second.of("disconnect") == []


def test_netcomm_whose_ident_is_taken_at_a_snakemq_listener_gets_in_later() -> None:
    with SnakemqProcess("hub", listen=[LOCALHOST, 0]) as hub:
        first = SnakemqConnector("net", *hub.address, limits=FAST)
        watch = Watch(first)
        with first:
            first.wait_connected("hub", WAIT_S)
            hub.wait_for("connect")
            with SnakemqConnector("net", *hub.address, limits=FAST) as second:
                refused = Watch(second)
                kept_waiting = second.send("hub", b"of the second")
                # snakeMQ says nothing; the user is told what is probably wrong, once, and not that it is connected.
                (error,) = refused.errors.wait_for_count(1)
                assert isinstance(error, ConnectionRefusedByPeer)
                assert "another connection with the ident 'net'" in str(error)
                assert refused.connects.items() == []
                # snakeMQ takes the first one's messages, and lets nobody believe that it took the second one's.
                assert first.send("hub", b"of the first").wait(WAIT_S)
                assert not kept_waiting.done
                assert [event["sha256"] for event in hub.wait_for("message")] == [digest(b"of the first")]
                assert hub.of("disconnect") == []
                assert watch.disconnects.items() == []

                first.terminate()
                assert kept_waiting.wait(WAIT_S)
                assert [event["uuid"] for event in hub.wait_for("message", 2)][-1] == kept_waiting.uuid.hex()
