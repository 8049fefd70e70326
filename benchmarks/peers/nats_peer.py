"""NATS, by nats-py: a subject, through one nats-server, at most once.

It does not acknowledge, so the receiver says on another subject that it has got all.
"""

import asyncio

import nats
from nats.aio.msg import Msg

from benchmarks.peers import Address, Checking

_NO_LIMIT = -1


class Receiver(Checking):
    def __init__(self, server: int) -> None:
        super().__init__()
        self.address = 0
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._connect(server))

    async def _connect(self, server: int) -> None:
        self._client = await nats.connect(f"nats://127.0.0.1:{server}")
        await self._client.subscribe(
            "benchmark", cb=self._on_message, pending_msgs_limit=_NO_LIMIT, pending_bytes_limit=_NO_LIMIT
        )
        await self._client.flush()

    async def _on_message(self, message: Msg) -> None:
        self.check.take(message.data)
        if self.check.taken == self.check.count:
            await self._client.publish("all-received", b"")
            await self._client.flush()
            self._loop.stop()

    def finish(self) -> None:
        self._loop.run_forever()


class Sender:
    def __init__(self, address: Address, server: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._connect(server))

    async def _connect(self, server: int) -> None:
        self._client = await nats.connect(f"nats://127.0.0.1:{server}")
        self._all_received = await self._client.subscribe("all-received")
        await self._client.flush()

    def send(self, payloads: list[bytes]) -> None:
        self._loop.run_until_complete(self._send(payloads))

    async def _send(self, payloads: list[bytes]) -> None:
        publish = self._client.publish
        for payload in payloads:
            await publish("benchmark", payload)
        await self._client.flush()
        await self._all_received.next_msg(timeout=110)
