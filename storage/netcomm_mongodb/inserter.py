"""Inserting documents in places where debris may be: documents of changes that failed."""

from pymongo.collection import Collection
from pymongo.errors import BulkWriteError

from netcomm.errors import StorageUnavailable
from netcomm_mongodb.connection import Connection
from netcomm_mongodb.documents import Document
from netcomm_mongodb.errors import only_duplicates
from netcomm_mongodb.head import Head


class Inserter:
    """Inserts an owner's documents.

    marks: the fields that tell which change a document belongs to. The first rises from owner to owner.
    """

    def __init__(self, connection: Connection, head: Head, *marks: str) -> None:
        self._connection = connection
        self._head = head
        self._marks = marks

    def insert(self, collection: Collection[Document], documents: list[Document]) -> None:
        """Insert documents, in place of debris. Raises StorageError where another owner's are in the way."""
        try:
            collection.insert_many(documents, ordered=False)
        except BulkWriteError as error:
            if not only_duplicates(error):
                raise
            # Debris of a change that failed, or the same document, sent twice by the driver.
            for failure in error.details["writeErrors"]:
                self._replace_debris(collection, documents[failure["index"]])

    def _replace_debris(self, collection: Collection[Document], document: Document) -> None:
        found = collection.find_one({"_id": document["_id"]}, dict.fromkeys(self._marks, 1))
        # Exactly that: an owner after this one may have replaced it meanwhile.
        if (
            found is not None
            and found[self._marks[0]] <= document[self._marks[0]]
            and collection.replace_one(found, document).matched_count
        ):
            return
        self._head.check_owner()
        raise StorageUnavailable(
            f"{self._connection.name}: a document was in the way; nothing was stored, trying again may help"
        )
