"""`Handover`: how far the callbacks have come with a batch, and what of it the node has been told."""

from collections import deque
from collections.abc import Iterator
from operator import length_hint

from netcomm import clocks
from netcomm.protocol.events import Received
from netcomm.protocol.node import Node

# So long may the acknowledgement of a message wait for its successors, to go out together with theirs.
ACK_DELAY_S = 0.005


class Handover:
    """The batch whose callbacks run; those that have returned are reported to the node, so that it acknowledges.

    The dispatcher takes payloads from `left`, without a lock. Everything else happens with the peer's mutex held. While
    one callback after the other returns, the thread that leads reports them; where it has found that one takes long,
    the dispatcher does when that one has returned.

    left: the payloads that have not been given to callbacks.
    attention: the dispatcher has something to do before the next callback: to write what a callback has sent, to report
        callbacks where nobody else does, or, where it is muted, to call no more of them.
    muted: nothing more is given to callbacks, and none that returns is reported.
    report_at: when the callbacks that have returned are to be reported, or None.
    untold: whether `tell` has something to tell.
    """

    __slots__ = ("_node", "attention", "batch", "left", "muted", "report_at", "untold")

    def __init__(self, node: Node) -> None:
        self._node = node
        self.batch: Received | None = None
        self.left: Iterator[bytes] = iter(())
        self.attention = False
        self.muted = False
        self.report_at: float | None = None
        self.untold = False

    def begin(self, batch: Received) -> Iterator[bytes]:
        """Begin with a batch, where it was left when it was held back; returns its payloads, to be taken one by one."""
        handled = batch.returned or batch.handled
        self.batch, self.left = batch, iter(batch.payloads[handled:] if handled else batch.payloads)
        self.report_at = clocks.now() + ACK_DELAY_S
        return self.left

    def end(self) -> None:
        """No batch is being handed over any more."""
        self.batch = self.report_at = None

    def report(self, running: int = 1) -> bool:
        """Tell the node of the callbacks that have returned; returns whether any had.

        running: how many of the messages that were given to callbacks may still be with them: the last one.
        """
        if self.batch is None or self.muted:
            return False
        returned = len(self.batch.payloads) - length_hint(self.left) - running
        return self._node.on_handled(self.batch, returned, clocks.now())

    def report_due(self, now: float) -> None:
        """Report where it is time to; where no callback has returned meanwhile, leave it to the dispatcher."""
        if self.report_at is not None and now >= self.report_at:
            self.report_at = now + ACK_DELAY_S if self.report() else None
            self.attention = self.attention or self.report_at is None

    def mute(self, running: int = 1) -> None:
        """Report for the last time; running: as for `report`."""
        self.report(running)
        self.muted = self.attention = True

    def tell(self, now: float) -> None:
        """On the thread that leads: tell the node of what was noted for it."""


class NotedHandover(Handover):
    """A Handover whose callbacks run on a thread that signals may interrupt, and that does nothing in the node.

    That thread notes how far it has come, in steps that can't be interrupted half-way, and the thread that leads tells
    the node. A batch that was interrupted stays the present one, as though a callback of it took long, until it is
    begun with again.
    """

    __slots__ = ("_ended",)

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._ended: deque[Received] = deque()  # batches that the node may not have been told all of

    def begin(self, batch: Received) -> Iterator[bytes]:
        """As `Handover.begin`. Where it was interrupted, the message whose callbacks ran comes again, and is marked."""
        if batch is self.batch:
            self.report()
            for seq, *_ in batch.items[batch.returned : batch.returned + 1]:
                batch.redelivered_below = max(batch.redelivered_below, seq + 1)
        return super().begin(batch)

    def end(self) -> None:
        """As `Handover.end`; the node will be told of the batch."""
        if self.batch is not None:
            self._ended.append(self.batch)
        self.untold = True
        self.batch = self.report_at = None

    def report(self, running: int = 1) -> bool:
        """Note the callbacks that have returned; returns whether any had."""
        batch = self.batch
        if batch is None or self.muted:
            return False
        returned = len(batch.payloads) - length_hint(self.left) - running
        if returned <= batch.returned:
            return False
        batch.returned = returned
        self.untold = True
        return True

    def tell(self, now: float) -> None:
        """Tell the node of what was noted."""
        self.untold = False
        while self._ended:
            ended = self._ended.popleft()
            self._node.on_handled(ended, ended.returned, now)
        if self.batch is not None:
            self._node.on_handled(self.batch, self.batch.returned, now)
