"""Payloads that are too large for one document, put together from their parts."""

from pymongo import ASCENDING
from pymongo.collection import Collection

from netcomm_mongodb.documents import Document, own_parts


def is_whole(documents: Collection[Document], parts: Collection[Document], document: Document) -> bool:
    """Put a document's payload into it; returns whether it is there: it may have been deleted in the meantime."""
    if not document.get("parts"):
        return True
    pieces = parts.find(own_parts(document), sort=[("_id", ASCENDING)])
    data = b"".join([piece["data"] for piece in pieces])
    size = len(data) + len(document.get("envelope", b""))
    # Documents go before their parts.
    if size != document.get("size") and documents.find_one({"_id": document["_id"]}, {"_id": 1}) is None:
        return False
    document["data"] = data
    return True
