"""`Limits`: what a peer allows itself and others."""

import dataclasses
from dataclasses import dataclass

from netcomm.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer allows itself and others. Sizes are in bytes, times in seconds.

    max_frame_bytes: the largest frame it accepts and sends. A message takes 33 bytes more than its data.
    max_handshake_frame_bytes: the same, until the other side has identified itself.
    window_bytes: how much of one stream may be sent and not yet acknowledged; one larger message may go alone. There
        are five streams: those of plain messages, persistent or not, and three for files and the bus. So what one peer
        has sent takes five times as much memory of this one at the most, and one large message beyond each.
    bulk_window_bytes: the same for pieces of large things (files), which share the line with small messages: a small
        one waits until so much has been taken, at the most. On a line that is fast and long, files pass faster with
        more.
    handshake_s: how long connecting, and then identifying, may take.
    keepalive_idle_s: a ping goes out after so long a silence.
    keepalive_wait_s: the connection is closed when there was no sign of life for so long after the ping: nothing
        arrived, and the other side's system took nothing of the output that the ping waits behind. So a dead connection
        is closed keepalive_idle_s + keepalive_wait_s after the last byte arrived; or, where such output was taken after
        the ping went out, at most 2 * keepalive_wait_s after the last of it was.
    reconnect_min_s, reconnect_max_s: the delay before connecting again doubles from one to the other.
    reconnect_refused_s: the longest delay, if that is more than reconnect_min_s, while the other machine answers that
        nobody listens there: such an attempt costs little, and a program that restarts is not kept waiting.
    max_queued_messages, max_queued_bytes: how much may wait in memory for one receiver.
    max_connections: how many connections may be open at once.
    max_idle_peers: how many peers that are not connected, and for which nothing waits, are remembered.
    made_up_ident_away_s: what waits for a peer whose ident was made up is discarded when it has been away for so long.
    diagnose_after_s: a warning tells of messages that have waited so long for an ident that is not connected,
        while others are.
    """

    max_frame_bytes: int = 64 * 1024 * 1024
    max_handshake_frame_bytes: int = 4 * 1024
    window_bytes: int = 8 * 1024 * 1024
    bulk_window_bytes: int = 512 * 1024
    handshake_s: float = 10.0
    keepalive_idle_s: float = 15.0
    keepalive_wait_s: float = 10.0
    reconnect_min_s: float = 0.1
    reconnect_max_s: float = 30.0
    reconnect_refused_s: float = 0.4
    max_queued_messages: int = 100_000
    max_queued_bytes: int = 256 * 1024 * 1024
    max_connections: int = 1024
    max_idle_peers: int = 10_000
    diagnose_after_s: float = 5.0
    made_up_ident_away_s: float = 60.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ConfigurationError(f"{field.name} must be a positive number, not {value!r}")
        for name in ("max_frame_bytes", "window_bytes", "bulk_window_bytes"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 33 <= value <= 0xFFFFFFFF:  # an empty message's frame has 33
                raise ConfigurationError(f"{name} must be a whole number from 33 to 2**32 - 1, not {value!r}")
        if self.reconnect_min_s > self.reconnect_max_s:
            raise ConfigurationError("reconnect_min_s must not exceed reconnect_max_s")
