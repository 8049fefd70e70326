"""A hub is moved from snakeMQ to netcomm, or back, while the others go on."""

import pytest

from netcomm import Limits, SnakemqConnector, SnakemqListener
from tests.interop.helpers import (
    LOCALHOST,
    WAIT_S,
    Producer,
    SnakemqProcess,
    Watch,
    first_arrivals,
    reserved_port,
)

ENOUGH = 1000
LIMITS = Limits(window_bytes=16 * 1024, max_queued_messages=2000, reconnect_min_s=0.01, reconnect_max_s=0.05)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_nothing_is_lost_when_netcomm_takes_over_from_a_snakemq_listener(end: str) -> None:
    with (
        reserved_port() as port,
        SnakemqConnector("net", LOCALHOST, port, limits=LIMITS) as net,
        SnakemqProcess("hub", listen=[LOCALHOST, port]) as old,
        SnakemqProcess("leaf", connect=[LOCALHOST, port]) as leaf,
        Producer(net, "hub") as producer,
    ):
        old.wait_for("message", ENOUGH)
        leaf.wait_for("connect")
        getattr(old, end)()
        producer.wait_for_backlog()

        new = SnakemqListener("hub", LOCALHOST, port)
        watch = Watch(new)
        with new:
            watch.messages.wait_for_count(ENOUGH)
            producer.stop()
            _talk_both_ways(new, watch, leaf)
        assert first_arrivals(old.received(), watch.received(sender="net")) == producer.sent()


def test_nothing_is_lost_when_snakemq_takes_over_from_a_netcomm_listener() -> None:
    with reserved_port() as port, SnakemqConnector("net", LOCALHOST, port, limits=LIMITS) as net:
        old = SnakemqListener("hub", LOCALHOST, port)
        watch = Watch(old)
        with old, SnakemqProcess("leaf", connect=[LOCALHOST, port]) as leaf, Producer(net, "hub") as producer:
            watch.messages.wait_for_count(ENOUGH)
            leaf.wait_for("connect")
            _talk_both_ways(old, watch, leaf)
            old.terminate()
            producer.wait_for_backlog()

            with SnakemqProcess("hub", listen=[LOCALHOST, port]) as new:
                new.wait_for("message", ENOUGH)
                producer.stop()
                leaf.wait_for("connect", 2)
                new.stop()
                assert first_arrivals(watch.received(sender="net"), new.received()) == producer.sent()


def test_nothing_is_lost_when_a_hub_goes_to_and_fro() -> None:
    arrivals = []
    with reserved_port() as port, SnakemqConnector("net", LOCALHOST, port, limits=LIMITS) as net:
        with Producer(net, "hub") as producer:
            for _ in range(3):
                with SnakemqProcess("hub", listen=[LOCALHOST, port]) as legacy:
                    legacy.wait_for("message", ENOUGH)
                    legacy.kill()
                    arrivals.append(legacy.received())
                hub = SnakemqListener("hub", LOCALHOST, port)
                watch = Watch(hub)
                with hub:
                    watch.messages.wait_for_count(ENOUGH)
                arrivals.append(watch.received(sender="net"))
            with SnakemqProcess("hub", listen=[LOCALHOST, port]) as legacy:
                producer.stop()
                legacy.stop()
                arrivals.append(legacy.received())
        assert first_arrivals(*arrivals) == producer.sent()


def _talk_both_ways(hub: SnakemqListener, watch: Watch, leaf: SnakemqProcess) -> None:
    assert hub.wait_connected("leaf", WAIT_S)
    assert hub.send("leaf", b"to the leaf").wait(WAIT_S)
    assert leaf.wait_for("message")[-1]["ident"] == "hub"
    leaf.send("hub")
    watch.messages.wait(lambda messages: any(ident == "leaf" for ident, _ in messages), "a message of the leaf")
