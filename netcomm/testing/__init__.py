"""What helps to test programs that use netcomm, and plug-ins for it."""

from typing import TYPE_CHECKING, Any

from netcomm.testing.proxy import FaultProxy

if TYPE_CHECKING:
    from netcomm.testing.storage_contract import QueueStorageContract

__all__ = ["FaultProxy", "QueueStorageContract"]


def __getattr__(name: str) -> Any:
    # Only who uses the contract needs pytest.
    if name != "QueueStorageContract":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import pytest
    except ImportError:
        pass  # the module says so
    else:
        # Else its asserts would not show what they compared.
        pytest.register_assert_rewrite("netcomm.testing.storage_contract")
    from netcomm.testing.storage_contract import QueueStorageContract

    return QueueStorageContract
