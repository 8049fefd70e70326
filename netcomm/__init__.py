"""Brokerless, reliable messaging between Python processes.

    from netcomm import SnakemqConnector, SnakemqListener

Start a thread, add a callback, and messages arrive: even after the network, the peer or your own process went away.
"""

import logging

from netcomm.callbacks import Callback
from netcomm.connector import SnakemqConnector
from netcomm.errors import (
    AlreadyDispatching,
    BindError,
    ConfigurationError,
    ConnectionRefusedByPeer,
    LifecycleError,
    LocalProtocolError,
    MessageTooLarge,
    NetcommError,
    ProtocolError,
    QueueFull,
    ReentrantCall,
    RemoteProtocolError,
    StorageCorrupt,
    StorageError,
    StorageLocked,
    StorageUnavailable,
)
from netcomm.limits import Limits
from netcomm.listener import SnakemqListener
from netcomm.message import FLAG_PERSISTENT, Delivery, DeliveryState, Message
from netcomm.peer import Peer, Stats
from netcomm.protocol.remote_peer import PeerStats

__version__ = "2.0.0.dev0"

__all__ = [
    "SnakemqConnector",
    "SnakemqListener",
    "Peer",
    "Callback",
    "Message",
    "Delivery",
    "DeliveryState",
    "FLAG_PERSISTENT",
    "Limits",
    "Stats",
    "PeerStats",
    "NetcommError",
    "ConfigurationError",
    "BindError",
    "LifecycleError",
    "AlreadyDispatching",
    "ReentrantCall",
    "ProtocolError",
    "LocalProtocolError",
    "RemoteProtocolError",
    "ConnectionRefusedByPeer",
    "QueueFull",
    "MessageTooLarge",
    "StorageError",
    "StorageUnavailable",
    "StorageLocked",
    "StorageCorrupt",
]

logging.getLogger("netcomm").addHandler(logging.NullHandler())
