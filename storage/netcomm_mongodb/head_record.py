"""The document `head` as it is read: whose the storage is, and the journal of what changed last."""

from dataclasses import dataclass
from datetime import datetime
from struct import Struct
from typing import Self
from zlib import crc32

from netcomm_mongodb.documents import Document, PositionRecord, Stream, not_as_stored
from netcomm_mongodb.host_documents import HostHead, Record, records_of

_IDENTITY = Struct(">16sq")


@dataclass(frozen=True, slots=True)
class HeadRecord:
    """The document `head`.

    owner: what the owner calls itself, None where there is none; owner_name: which process it is, for people.
    lease_s, taken_at: for how long the owner has the storage, and the server's time when it took it.
    n: counts the updates.
    streams, positions, records: the journal; host: what the head says of the host besides.
    """

    store_id: bytes
    incarnation: int
    owner: str | None
    owner_name: str
    lease_s: float
    taken_at: datetime
    n: int
    streams: tuple[Stream, ...]
    positions: tuple[PositionRecord, ...]
    host: HostHead
    records: dict[str, Record]

    @classmethod
    def from_document(cls, document: Document) -> Self:
        """The head of a document. Raises Damaged, and what `decoded` makes Damaged of."""
        head = cls(
            bytes(document["store_id"]),
            int(document["incarnation"]),
            document["owner"],
            str(document.get("owner_name")),
            float(document.get("lease_s", 0.0)),
            document.get("taken_at", datetime.min),
            int(document["n"]),
            tuple([Stream.from_document(entry) for entry in document["streams"]]),
            tuple([PositionRecord.from_document(entry) for entry in document["positions"]]),
            HostHead.from_head(document),
            records_of(document.get("host", ())),
        )
        if document["checksum"] != identity_checksum(head.store_id, head.incarnation):
            raise not_as_stored("its identity")
        return head


def identity_checksum(store_id: bytes, incarnation: int) -> int:
    """The checksum of the head."""
    return crc32(_IDENTITY.pack(store_id, incarnation))
