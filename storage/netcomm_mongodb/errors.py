"""What goes wrong, in netcomm's terms: pymongo's errors become `StorageError`s that say what can be done."""

from collections.abc import Iterator
from contextlib import contextmanager

from bson.errors import InvalidBSON
from pymongo.errors import (
    BulkWriteError,
    ConnectionFailure,
    DocumentTooLarge,
    InvalidOperation,
    OperationFailure,
    PyMongoError,
)

from netcomm.errors import StorageCorrupt, StorageError, StorageUnavailable

# The server's codes of errors that pass: no primary now, shutting down, interrupted, out of time or of disk space.
_PASSING_CODES = frozenset(
    [1, 6, 7, 50, 64, 89, 91, 112, 134, 189, 202, 262, 9001, 10107, 11600, 11602, 13435, 13436, 14031]
)
_ACCESS_CODES = frozenset([13, 18, 8000])
_DUPLICATE_KEY = 11000


class Damaged(Exception):
    """The storage is damaged; the text says what is wrong."""


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Raise netcomm's error in place of pymongo's, and of Damaged.

    name: what the texts call the storage.
    """
    try:
        yield
    except PyMongoError as error:
        raise _translation(name, error) from error
    except Damaged as error:
        raise _corrupt(name, f"{error}") from error
    except InvalidBSON as error:
        raise _corrupt(name, f"{error} is not what was stored") from error
    except DocumentTooLarge as error:
        raise StorageError(f"{name}: too much at once; nothing was stored ({error})") from error


def only_duplicates(error: BulkWriteError) -> bool:
    """Whether a bulk write failed for nothing but documents whose `_id` was there already."""
    return _codes(error) == {_DUPLICATE_KEY}


def _corrupt(name: str, what: str) -> StorageCorrupt:
    return StorageCorrupt(
        f"{name} is damaged: {what}. Restore the database from a backup; to start with an empty queue, use another"
        " database or netcomm_prefix"
    )


def _translation(name: str, error: PyMongoError) -> StorageError:
    kept = "what was accepted before is kept"
    if isinstance(error, InvalidOperation):
        return StorageError(f"{name} has been closed")
    if isinstance(error, ConnectionFailure) or error.timeout:
        return StorageUnavailable(
            f"{name} can't be reached: is the server running, and has it a primary? The next call tries again;"
            f" {kept} ({error})"
        )
    codes = _codes(error)
    if codes & _ACCESS_CODES:
        return StorageError(f"{name} refuses the user: may it read and write the database? ({error})")
    if codes & _PASSING_CODES:
        return StorageUnavailable(f"{name} can't do it now: trying again may help; {kept} ({error})")
    return StorageError(f"{name} can't do it: {error}; {kept}")


def _codes(error: PyMongoError) -> set[int]:
    if isinstance(error, BulkWriteError):
        failures = [*error.details.get("writeErrors", ()), *error.details.get("writeConcernErrors", ())]
        return {failure.get("code", 0) for failure in failures}
    if isinstance(error, OperationFailure) and error.code is not None:
        return {error.code}
    return set()
