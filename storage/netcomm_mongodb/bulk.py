"""Many documents at once: put in place of earlier versions of them, and removed in slices."""

from collections.abc import Hashable
from typing import Any

from pymongo import ASCENDING, ReplaceOne
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError

from netcomm_mongodb.documents import Document
from netcomm_mongodb.errors import only_duplicates

_SLICE = 10_000


def slices(items: list[Any]) -> list[list[Any]]:
    """Items in slices, each of which is a request of bearable size."""
    return [items[start : start + _SLICE] for start in range(0, len(items), _SLICE)]


def replace_older(collection: Collection[Document], documents: list[Document]) -> None:
    """Put documents in place of earlier versions of them; where they are already, or later ones, they are left."""
    ids = [document["_id"] for document in documents]
    there = {_hashable(found["_id"]) for found in collection.find({"_id": {"$in": ids}}, {"_id": 1})}
    new = [document for document in documents if _hashable(document["_id"]) not in there]
    old = [document for document in documents if _hashable(document["_id"]) in there]
    try:
        if new:
            collection.insert_many(new, ordered=False)
    except BulkWriteError as error:
        if not only_duplicates(error):
            raise
        old = documents  # they were put there meanwhile
    if old:
        collection.bulk_write(
            [ReplaceOne({"_id": entry["_id"], "version": {"$lt": entry["version"]}}, entry) for entry in old],
            ordered=False,
        )


def remove_range(collection: Collection[Document], start: str, end: str) -> None:
    """Remove the documents from an `_id` to below another; in slices, to leave others a turn."""
    full = True
    while full:
        within = {"_id": {"$gte": start, "$lt": end}}
        found = list(collection.find(within, {"_id": 1}, sort=[("_id", ASCENDING)], limit=_SLICE))
        full = len(found) == _SLICE
        if found:
            collection.delete_many({"_id": {"$gte": start, "$lte": found[-1]["_id"]}})


def _hashable(id: Any) -> Hashable:
    return tuple(id.items()) if isinstance(id, dict) else id
