"""`SnakemqListener`: a peer that is connected to."""

from typing import Any

from netcomm.peer import Peer


class SnakemqListener(Peer):
    """A `Peer` that accepts connections at one place.

    with SnakemqListener("niess", "0.0.0.0", 4002) as niess:
        niess.on_recv.add(lambda ident, data: print(ident, len(data)))
    """

    def __init__(
        self,
        ident: str | None = None,
        host: str = "localhost",
        port: int = 9090,
        persistent: bool = False,
        **options: Any,
    ) -> None:
        """Make a listener. It has its address when this returns; `start` lets it accept.

        ident, persistent, options: as for `Peer`.
        host, port: as for `Peer.add_listener`.

        Raises BindError where the address can't be had, and ConfigurationError.
        """
        super().__init__(ident, persistent, **options)
        self._address = self._setup(lambda: self.add_listener(host, port))

    @property
    def address(self) -> str | tuple[str, int]:
        """The bound address: (host, port), or `unix:/path`."""
        return self._address
