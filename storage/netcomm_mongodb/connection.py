"""The way to the server: what the URL says, the client, and the collections by name."""

import re
from typing import Any
from urllib.parse import unquote

from pymongo import MongoClient, ReadPreference, WriteConcern
from pymongo.collection import Collection
from pymongo.errors import ConfigurationError as PyMongoConfigurationError
from pymongo.errors import InvalidName

from netcomm.errors import ConfigurationError
from netcomm_mongodb.documents import Document

DATABASE = "netcomm"
PREFIX = "netcomm_"

_OWN_OPTIONS = ("netcomm_prefix", "netcomm_lease_s")
_CLIENT_DEFAULTS: dict[str, Any] = {
    "appname": "netcomm",
    "serverSelectionTimeoutMS": 2000,
    "connectTimeoutMS": 5000,
    "socketTimeoutMS": 20000,  # without one, a server that vanishes without a word would hang its callers for ever
}
_MAJORITY_TIMEOUT_MS = 10000

_abandoned: list[MongoClient[Document]] = []


class Connection:
    """A client, and the collections of one storage.

    name: what texts call the storage; it shows no password.
    """

    def __init__(self, uri: str, database: str, prefix: str) -> None:
        """Make the client; it connects when it is used. Raises ConfigurationError."""
        if not re.fullmatch(r"[A-Za-z0-9_.-]*", prefix) or prefix.startswith((".", "system.")):
            raise ConfigurationError(f"a prefix has letters, digits, '_', '-' and '.' inside, unlike {prefix!r}")
        self.name = f"{_without_login(uri)}/{database} ({prefix})"
        self._client = _client(uri)
        try:
            timeout_ms = self._client.write_concern.document.get("wtimeout", _MAJORITY_TIMEOUT_MS)
            db = self._client.get_database(
                database,
                read_preference=ReadPreference.PRIMARY,
                write_concern=WriteConcern("majority", wtimeout=timeout_ms, j=True),
            )
            self.meta: Collection[Document] = db[f"{prefix}meta"]
            self.streams: Collection[Document] = db[f"{prefix}streams"]
            self.positions: Collection[Document] = db[f"{prefix}positions"]
            self.messages: Collection[Document] = db[f"{prefix}messages"]
            self.parts: Collection[Document] = db[f"{prefix}parts"]
            self.host: Collection[Document] = db[f"{prefix}host"]
            self.rows: Collection[Document] = db[f"{prefix}rows"]
            self.row_parts: Collection[Document] = db[f"{prefix}row_parts"]
        except BaseException as error:
            self._client.close()
            if isinstance(error, InvalidName):
                raise ConfigurationError(f"{database!r} can't be the name of a MongoDB database: {error}") from error
            raise

    def close(self) -> None:
        """Close the client. Closing again does nothing."""
        self._client.close()

    def abandon(self) -> None:
        """In a forked child: let go of the client without a word to the server."""
        # Kept, and not even closed: closing would end the parent's sessions on the server.
        _abandoned.append(self._client)


def arguments_of(url: str) -> tuple[str, dict[str, Any]]:
    """The URI for pymongo, and the constructor's other arguments that a storage's URL names. Raises ConfigurationError.

    The database is "netcomm" where the URL names none.
    """
    scheme, _, rest = url.partition("://")
    place, _, query = rest.partition("?")
    path = place.partition("/")[2]
    own: dict[str, str] = {}
    passed = []
    for option in query.split("&") if query else []:
        name, _, value = option.partition("=")
        if not name.lower().startswith("netcomm_"):
            passed.append(option)
        elif name in _OWN_OPTIONS:
            own[name] = unquote(value)
        else:
            raise ConfigurationError(f"unknown option {name!r} in a MongoDB URL; there are {', '.join(_OWN_OPTIONS)}")
    arguments: dict[str, Any] = {"database": unquote(path) or DATABASE}
    if "netcomm_prefix" in own:
        arguments["prefix"] = own["netcomm_prefix"]
    if "netcomm_lease_s" in own:
        try:
            arguments["lease_s"] = float(own["netcomm_lease_s"])
        except ValueError:
            raise ConfigurationError(f"netcomm_lease_s must be a number, not {own['netcomm_lease_s']!r}") from None
    uri = f"{scheme}://{place if '/' in place else place + '/'}" + ("?" + "&".join(passed) if passed else "")
    return uri, arguments


def _client(uri: str) -> MongoClient[Document]:
    given = {option.partition("=")[0].lower() for option in uri.partition("?")[2].split("&")}
    # Arguments would win over the URI.
    defaults = {name: value for name, value in _CLIENT_DEFAULTS.items() if name.lower() not in given}
    try:
        return MongoClient(uri, **defaults)
    except (PyMongoConfigurationError, ValueError, TypeError) as error:
        raise ConfigurationError(f"{_without_login(uri)} can't be used as a MongoDB URL: {error}") from error


def _without_login(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.partition('?')[0].partition('/')[0].rpartition('@')[2]}"
