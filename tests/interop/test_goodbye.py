"""A snakeMQ peer gets no GOODBYE, and messages wait for it as ever, also those of a peer whose ident was made up."""

from contextlib import suppress

from netcomm import SnakemqListener
from netcomm.protocol.frames import FrameType
from tests.interop.helpers import LOCALHOST, VERSION, WAIT_S, RawConnection, SnakemqProcess, ident_packet


def test_a_snakemq_peer_is_told_no_goodbye() -> None:
    net = SnakemqListener(None, LOCALHOST, 0)
    assert isinstance(net.address, tuple)
    kinds = []
    with RawConnection.to(net.address) as raw:
        with net:
            raw.write(VERSION + ident_packet("snake"))
            assert net.wait_connected("snake", WAIT_S)
        with suppress(EOFError):
            while True:
                kinds.append(raw.read_packet()[0])
    assert kinds == [FrameType.VERSION, FrameType.HELLO, FrameType.IDENT]


def test_a_snakemq_process_goes_on_undisturbed_when_a_netcomm_peer_ends() -> None:
    net = SnakemqListener(None, LOCALHOST, 0)
    with SnakemqProcess("snake", connect=net.address) as snake:
        with net:
            assert net.wait_connected("snake", WAIT_S)
            snake.wait_for("connect")
        snake.wait_for("disconnect")
        assert snake.of("error") == snake.of("crash") == []
