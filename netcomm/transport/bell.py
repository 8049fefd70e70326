"""`Bell`: a descriptor that is readable while it is rung, for the main loops of programs."""

import selectors

from netcomm.transport.waker import Waker

# Neither has a descriptor of its own; the second one is for systems that lack the first.
_Selector: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)


class Bell(Waker):
    """A `Waker` that threads of the program wait for and clear, which signals may interrupt at any step."""

    def wait(self, timeout: float | None) -> bool:
        """Wait until it is rung, at most `timeout` seconds (None: as long as it takes); returns whether it is.

        Returns False once it is closed.
        """
        with _Selector() as selector:
            try:
                selector.register(self.receiver, selectors.EVENT_READ)
            except ValueError:  # it is closed
                return False
            return bool(selector.select(timeout))

    def clear(self) -> None:
        """Let it be readable only when it is rung again. Does nothing where it is not rung, or closed."""
        with self._lock:
            if self._closed or not self._rung:
                return
            # No call stands before `try`: a byte that is left where nothing is rung would never be read. And a signal's
            # handler may raise when the byte has been read: the next ring has to send one.
            try:
                self.receiver.recv(16)
            except BlockingIOError:
                pass  # a ring was interrupted before it sent its byte
            finally:
                self._rung = False
