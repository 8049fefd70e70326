"""The errors that netcomm raises or reports.

NetcommError
├── ConfigurationError (ValueError)   a bad argument, an unknown storage scheme
├── BindError (OSError)               a listener can't have its address
├── LifecycleError                    used before start, after terminate, or in a forked child
├── AlreadyDispatching                dispatch was called while it runs: in a callback, or by another thread
├── ReentrantCall                     a finalizer or a signal handler asked for what can't be done there
├── ProtocolError
│   ├── LocalProtocolError            this program broke the protocol
│   └── RemoteProtocolError           the other side's bytes broke it
├── ConnectionRefusedByPeer           the other side said why it won't talk: duplicate ident, …
├── QueueFull                         the outgoing queue has no room
├── MessageTooLarge                   larger than a frame may be
└── StorageError
    ├── StorageUnavailable            the storage can't be reached now; try again
    ├── StorageLocked                 another owner has it open
    └── StorageCorrupt                its content is damaged
"""


class NetcommError(Exception):
    """The base of every error of netcomm."""


class ConfigurationError(NetcommError, ValueError):
    """An argument is not usable; the text names it and says what is."""


class BindError(NetcommError, OSError):
    """A listener can't have its address, for instance because the port is in use.

    It keeps the operating system's `errno`.
    """


class LifecycleError(NetcommError):
    """The peer was used before `start`, after `terminate`, or in a forked child."""


class AlreadyDispatching(NetcommError):
    """`Peer.dispatch` was called while it runs: in a callback, or by another thread. Callbacks run one at a time."""


class ReentrantCall(NetcommError):
    """A finalizer (`__del__`) or a signal handler has interrupted the library, and asked for what can't be done there.

    The thread that it runs on holds a lock of the library, or moves the library's bytes. It may send transient messages
    there, which are queued. Whatever waits or stores is refused: let the finalizer or handler note what is to be done,
    and do it elsewhere.
    """


class ProtocolError(NetcommError):
    """The wire protocol was broken."""


class LocalProtocolError(ProtocolError):
    """This program asked for something that the protocol does not allow."""


class RemoteProtocolError(ProtocolError):
    """The other side sent bytes that the protocol does not allow; its connection is closed."""


class ConnectionRefusedByPeer(NetcommError):
    """The other side refused the connection and said why.

    `code` is one of the codes of `netcomm.protocol.frames.RefuseCode`.
    """

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code

    def __reduce__(self) -> tuple[type["ConnectionRefusedByPeer"], tuple[str, int]]:
        return type(self), (str(self), self.code)


class QueueFull(NetcommError):
    """The outgoing queue to a peer had no room within the time that was given; nothing was queued."""


class MessageTooLarge(NetcommError):
    """A message does not fit into one frame; nothing was queued."""


class StorageError(NetcommError):
    """A queue storage could not do what was asked."""


class StorageUnavailable(StorageError):
    """The storage can't be reached now; what it had accepted is kept."""


class StorageLocked(StorageError):
    """Another owner has the storage open."""


class StorageCorrupt(StorageError):
    """The storage's content is damaged."""
