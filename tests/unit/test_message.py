"""`netcomm.message`: what users hold in their hands, and the limits."""

import dataclasses
import gc
import weakref
from collections.abc import Callable

import pytest

from netcomm import ConfigurationError, DeliveryState, Limits, Message
from netcomm.message import FLAG_PERSISTENT, VOLATILE, Delivery, check_ident
from tests.unit.helpers import UUID, make_delivery

STATES = list(DeliveryState)
ENDS = STATES[2:]


def test_the_flag_is_that_of_snakemq() -> None:
    assert FLAG_PERSISTENT == 1


def test_a_message_is_frozen_and_tells_whether_it_is_persistent() -> None:
    message = Message(b"data", UUID, 5, FLAG_PERSISTENT, False)
    assert message.persistent
    assert not Message(b"data", UUID, 5, 2, False).persistent
    with pytest.raises(dataclasses.FrozenInstanceError):
        message.data = b""  # type: ignore[misc]


def test_the_last_four_states_are_ends() -> None:
    assert [state.name for state in ENDS] == ["DELIVERED", "EXPIRED", "REJECTED", "DISCARDED"]
    delivery = make_delivery()
    assert delivery.state is DeliveryState.QUEUED
    for state in STATES:
        delivery.state = state
        assert delivery.done == (state in ENDS)


def test_wait_asks_the_one_who_made_it() -> None:
    asked: list[tuple[Delivery, float | None]] = []
    watched: list[tuple[Delivery, object]] = []

    class Owner:
        def wait_for_delivery(self, delivery: Delivery, timeout: float | None) -> bool:
            asked.append((delivery, timeout))
            return timeout is None

        def watch_delivery(self, delivery: Delivery, function: Callable[[Delivery], object]) -> None:
            watched.append((delivery, function))

    delivery = Delivery("b", UUID, b"", 37, None, VOLATILE, Owner())
    assert delivery.wait() is True
    assert delivery.wait(2.5) is False
    assert asked == [(delivery, None), (delivery, 2.5)]
    delivery.add_done_callback(print)
    assert watched == [(delivery, print)]


def test_a_delivery_tells_its_receiver_and_state_and_not_its_payload() -> None:
    text = repr(make_delivery("niess", b"secret"))
    assert "niess" in text
    assert "queued" in text
    assert "secret" not in text


def test_a_delivery_can_be_referred_to_weakly_and_has_no_dict() -> None:
    delivery = make_delivery()
    assert not hasattr(delivery, "__dict__")
    reference = weakref.ref(delivery)
    del delivery
    gc.collect()
    assert reference() is None


def test_the_default_limits_are_the_documented_ones() -> None:
    limits = Limits()
    assert limits.max_frame_bytes == 64 * 1024 * 1024
    assert limits.max_handshake_frame_bytes == 4 * 1024
    assert limits.window_bytes == 8 * 1024 * 1024
    assert limits.bulk_window_bytes == 512 * 1024
    assert limits.handshake_s == 10
    assert (limits.keepalive_idle_s, limits.keepalive_wait_s) == (15, 10)
    assert (limits.reconnect_min_s, limits.reconnect_max_s) == (0.1, 30)
    assert (limits.max_queued_messages, limits.max_queued_bytes) == (100_000, 256 * 1024 * 1024)
    assert limits.max_connections == 1024


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits)])
@pytest.mark.parametrize("value", [0, -1, None, "5", True, float("nan")])
def test_every_limit_must_be_a_positive_number(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=name):
        Limits(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["max_frame_bytes", "window_bytes", "bulk_window_bytes"])
def test_limits_that_are_told_to_the_other_side_must_fit_into_32_bits(name: str) -> None:
    assert getattr(Limits(**{name: 0xFFFFFFFF}), name) == 0xFFFFFFFF
    with pytest.raises(ConfigurationError, match=name):
        Limits(**{name: 0x100000000})


@pytest.mark.parametrize("name", ["max_frame_bytes", "window_bytes", "bulk_window_bytes"])
def test_limits_that_are_told_to_the_other_side_must_be_whole(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        Limits(**{name: 1e6})  # type: ignore[arg-type]


def test_a_frame_must_have_room_for_a_message() -> None:
    # The other side takes a smaller one for a protocol error.
    with pytest.raises(ConfigurationError, match="max_frame_bytes"):
        Limits(max_frame_bytes=32)


def test_the_reconnect_delays_must_be_in_order() -> None:
    assert Limits(reconnect_min_s=5, reconnect_max_s=5).reconnect_min_s == 5
    with pytest.raises(ConfigurationError, match="reconnect"):
        Limits(reconnect_min_s=5, reconnect_max_s=4)


@pytest.mark.parametrize("ident", ["b", "žížala", "x" * 255, "ž" * 127, " ", "a\nb"])
def test_an_ident_may_be_any_text_of_1_to_255_bytes(ident: str) -> None:
    assert check_ident(ident) == ident


@pytest.mark.parametrize("ident", ["", "x" * 256, "ž" * 128, "\ud800", b"bytes", None, 5])
def test_another_ident_is_refused(ident: object) -> None:
    with pytest.raises(ConfigurationError, match="ident"):
        check_ident(ident)
