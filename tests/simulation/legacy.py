"""A small model of a snakeMQ 1.6 peer, from what is documented of it: frames 0 to 5, and its habits.

It takes a message out of its queue before it writes it; answers a ping after the callbacks of all before it; passes
over frames that it does not know; closes the newer of two connections that say one ident, and its loop dies where
something lies behind that ident, or where a callback raises.
"""

import struct
from collections import deque
from typing import Any

from netcomm.message import Stream
from tests.simulation.oracle import Sent
from tests.simulation.world import End

_INFINITE = 0xFFFFFFFF
_PING, _PONG = b"\0\0\0\1\4", b"\0\0\0\1\5"
_IDLE_S, _WAIT_S = 2.0, 1.0


class _Side:
    """What it knows of one connection."""

    def __init__(self, end: End, now: float) -> None:
        self.end = end
        self.buffer = bytearray()
        self.ident: str | None = None
        self.last_received = now
        self.pinged_at: float | None = None


class LegacyProcess:
    legacy = True
    ending = False

    def __init__(self, node: Any, incarnation: int) -> None:
        self.node = node
        self.world = node.world
        self.oracle = node.oracle
        self.rng = node.world.rng
        self.incarnation = incarnation
        self.alive = True
        self.trap: str | None = None
        self.ends: dict[int, End] = {}
        self._sides: dict[int, _Side] = {}
        self._numbers = 0
        self._by_ident: dict[str, _Side] = {}
        self._queues: dict[str, deque[Sent]] = {}
        self._inputs: deque[tuple[_Side, bytes]] = deque()
        self._working = False
        self.world.after(1.0, self, self._look_after)

    def opened(self, end: End) -> None:
        self._numbers += 1
        end.number = self._numbers
        self.ends[end.number] = end
        self._sides[end.number] = _Side(end, self.world.now)
        ident = self.node.ident.encode()
        end.outgoing.write(b"\0\0\0\5\0\0\0\0\1" + struct.pack(">IB", len(ident) + 1, 2) + ident)

    def received(self, end: End, chunk: bytes) -> None:
        self._inputs.append((self._sides[end.number], chunk))
        if not self._working:
            self._working = True
            self.world.after(0.0, self, self._work)

    def writable(self, end: End) -> None:
        pass

    def lost(self, end: End, reason: str) -> None:
        self._forget(end)
        self.node.reconnect(self, end)

    def _close(self, side: _Side) -> None:
        side.end.close()
        self._forget(side.end)
        self.node.reconnect(self, side.end)

    def _forget(self, end: End) -> None:
        side = self._sides.pop(end.number, None)
        self.ends.pop(end.number, None)
        if side is not None and side.ident is not None and self._by_ident.get(side.ident) is side:
            del self._by_ident[side.ident]

    def _work(self) -> None:
        """One pass of its loop: a read, up to the first slow callback."""
        delay = 0.0
        if self._inputs:
            side, chunk = self._inputs.popleft()
            if side.end.number in self._sides:
                side.last_received = self.world.now
                side.pinged_at = None
                side.buffer += chunk
                self._parse(side)
                if self.world.now < self.node.dawdle_until:
                    delay = self.rng.choice((0.05, 0.5, 1.5)) * self.rng.random()
        if self._inputs:
            self.world.after(delay, self, self._work)
        else:
            self._working = False

    def _parse(self, side: _Side) -> None:
        buffer = side.buffer
        while len(buffer) >= 4:
            (size,) = struct.unpack_from(">I", buffer)
            if size == 0:
                self._close(side)
                return
            if len(buffer) < 4 + size:
                return
            kind, payload = buffer[4], bytes(buffer[5 : 4 + size])
            del buffer[: 4 + size]
            if kind == 0 and payload != b"\0\0\0\1":
                self._close(side)
                return
            if kind == 2 and side.ident is None:
                ident = payload.decode()
                if ident in self._by_ident:
                    behind = bool(buffer)
                    self._close(side)
                    if behind:
                        self.node.kill()
                    return
                side.ident = ident
                self._by_ident[ident] = side
                self._flush(ident)
            elif kind == 3 and side.ident is not None:
                uuid, ttl, flags = struct.unpack_from(">16sII", payload)
                item = (0, uuid, ttl, flags, payload[24:], None)
                self.oracle.handed_over(self, side.ident, item, False, Stream(flags & 1))
                if self.trap is not None or self.world.now < self.node.raises_until:  # the callback raises
                    self.trap = None
                    self.node.kill()
                    return
            elif kind == 4:
                side.end.outgoing.write(_PONG)

    def _flush(self, ident: str) -> None:
        side, queue = self._by_ident.get(ident), self._queues.get(ident)
        while side is not None and queue:
            message = queue.popleft()
            ttl = _INFINITE if message.ttl is None else int(message.ttl)
            body = struct.pack(">16sII", message.uuid, ttl, message.persistent) + message.data
            side.end.outgoing.write(struct.pack(">IB", len(body) + 1, 3) + body)

    def _look_after(self) -> None:
        now = self.world.now
        for side in list(self._sides.values()):
            if side.last_received > now - _IDLE_S:
                continue
            if side.pinged_at is None:
                side.pinged_at = now
                side.end.outgoing.write(_PING)
            elif side.pinged_at < now - _WAIT_S:
                self._close(side)
        self.world.after(1.0, self, self._look_after)

    def send(self, messages: list[Sent], release: float) -> None:
        for message in messages:
            message.sender = self
            self.oracle.accepted(message, self)
            self._queues.setdefault(message.receiver, deque()).append(message)
        self._flush(messages[0].receiver)

    def terminate(self) -> None:
        self.node.kill(gently=True)

    def abandon_connection(self, end: End) -> None:
        end.outgoing.dead = True
        end.closed = True
        self.lost(end, "given up")

    def die(self, gently: bool) -> None:
        self.alive = False
        silent = not gently and self.rng.random() < 0.3
        for end in self.ends.values():
            end.closed = True
            if silent:
                end.outgoing.dead = True
            else:
                end.outgoing.end()

    def quiet(self) -> bool:
        return not self._inputs and not self._working
