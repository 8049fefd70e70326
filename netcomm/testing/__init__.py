"""What helps to test programs that use netcomm, and plug-ins for it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from netcomm.testing.proxy import FaultProxy

if TYPE_CHECKING:
    from netcomm.testing.host_storage_contract import HostStorageContract
    from netcomm.testing.storage_contract import QueueStorageContract

__all__ = ["FaultProxy", "HostStorageContract", "QueueStorageContract"]

_CONTRACTS = {"HostStorageContract": "host_storage_contract", "QueueStorageContract": "storage_contract"}


def __getattr__(name: str) -> Any:
    # Only who uses a contract needs pytest.
    if name not in _CONTRACTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import pytest
    except ImportError:
        pass  # the module says so
    else:
        # Else its asserts would not show what they compared.
        pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in _CONTRACTS.values()))
    return getattr(import_module(f"{__name__}.{_CONTRACTS[name]}"), name)
