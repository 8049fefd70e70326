"""`SnakemqConnector`: a peer that connects."""

from typing import Any

from netcomm.peer import Peer


class SnakemqConnector(Peer):
    """A `Peer` that connects to one place, and again whenever the connection is lost.

    with SnakemqConnector("bob", "10.16.5.45", 4002) as bob:
        bob.send("niess", b"hello").wait(5)
    """

    def __init__(
        self,
        ident: str | None = None,
        host: str = "localhost",
        port: int = 9090,
        persistent: bool = False,
        **options: Any,
    ) -> None:
        """Make a connector; `start` lets it connect.

        ident, persistent, options: as for `Peer`.
        host, port: as for `Peer.add_connector`.

        Raises ConfigurationError.
        """
        super().__init__(ident, persistent, **options)
        self._setup(lambda: self.add_connector(host, port))
