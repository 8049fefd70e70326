"""RabbitMQ, by pika: a transient queue, through one server; the receiver acknowledges each message.

Those acknowledgements do not reach the sender, so the receiver says on another queue that it has got all.
"""

import pika

from benchmarks.peers import Address, Checking

_PREFETCH = 1000


def _channel(server: int) -> pika.adapters.blocking_connection.BlockingChannel:
    channel = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", server)).channel()
    for queue in ("benchmark", "all-received"):
        channel.queue_declare(queue)
    return channel


class Receiver(Checking):
    def __init__(self, server: int) -> None:
        super().__init__()
        self.address = 0
        self._channel = _channel(server)
        self._channel.basic_qos(prefetch_count=_PREFETCH)

    def finish(self) -> None:
        for method, _, data in self._channel.consume("benchmark"):
            self.check.take(data)
            self._channel.basic_ack(method.delivery_tag)
            if self.check.taken == self.check.count:
                break
        self._channel.basic_publish("", "all-received", b"")
        self._channel.connection.process_data_events(0)


class Sender:
    def __init__(self, address: Address, server: int) -> None:
        self._channel = _channel(server)

    def send(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            self._channel.basic_publish("", "benchmark", payload)
        for method, _, _ in self._channel.consume("all-received"):
            self._channel.basic_ack(method.delivery_tag)
            break
