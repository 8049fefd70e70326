"""The rules of the rooms: who may import what. They are read off the sources, so that nothing has to run for it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "netcomm"

# Imports point only upward in this list.
LIBRARY = [
    "errors",
    "logs",
    "clocks",
    "process",
    "callbacks",
    "deadlines",
    "message",
    "storage",
    "connections",
    "protocol",
    "protocol.wall_clock",
    "protocol.batch",
    "protocol.open_run",
    "protocol.frames",
    "protocol.encode",
    "protocol.decode",
    "protocol.events",
    "protocol.storage_queue",
    "protocol.session",
    "protocol.inbox",
    "protocol.expiry",
    "protocol.out_stream",
    "protocol.durable_out_stream",
    "protocol.outbox",
    "protocol.messaging",
    "protocol.node",
    "keeper",
    "dispatcher",
    "leadership",
    "places",
    "link",
    "peer",
    "connector",
    "listener",
]
# What stands on the library: programs and tools for tests, which may use sockets and threads as any program does.
ON_TOP = ["testing.proxy", "testing.*", "testing", "demo", "queue_cli", "cli", "__main__"]
SANS_IO = ["deadlines", "message", *(name for name in LIBRARY if name.startswith("protocol"))]

SOCKETS = {"socket", "selectors", "select", "ssl", "socketserver", "asyncio"}
THREADS = {"threading", "_thread", "queue", "multiprocessing", "concurrent"}
CLOCKS_AND_CHANCE = {"time", "datetime", "random", "secrets", "uuid", "os"}
DATABASES = {"sqlite3", "sqlite_utils", "pymongo", "bson"}
EXTRAS = {"click", "rich", "pymongo", "sqlite_utils"}


def modules() -> dict[str, str]:
    """The sources of the package by dotted name, without the package's own name; its __init__ is left out."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path.read_text()
    return found


def imports(source: str, names: set[str], package: str = "netcomm") -> set[str]:
    """What a source imports, anywhere in it: dotted names of modules.

    names: the modules of netcomm, to tell `from netcomm import wire` from `from netcomm import Peer`.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner.removeprefix("netcomm.") in names else base)
    return found


SOURCES = modules()
NAMES = set(SOURCES)


def imports_of(name: str) -> set[str]:
    is_package = (PACKAGE / name.replace(".", "/")).is_dir()
    parents = name.split(".") if is_package else name.split(".")[:-1]
    return imports(SOURCES[name], NAMES, ".".join(["netcomm", *parents]))


def external(name: str) -> set[str]:
    return {imported.split(".")[0] for imported in imports_of(name)} - {"netcomm"}


def internal(name: str) -> set[str]:
    return {
        imported.removeprefix("netcomm").removeprefix(".")
        for imported in imports_of(name)
        if imported.split(".")[0] == "netcomm"
    }


def place(name: str) -> int:
    order = [*LIBRARY, *ON_TOP]
    if name.startswith("testing.") and name not in order:
        name = "testing.*"
    return order.index(name)


def test_the_reader_of_imports_finds_them_all() -> None:
    source = """
import os.path, socket as s
from netcomm import wire, Peer
from netcomm.errors import NetcommError
from . import link
from .peer import Peer
from collections.abc import Callable
if True:
    import time
def function():
    try:
        from random import random
    except ImportError:
        pass
"""
    assert imports(source, {"wire", "link", "peer", "errors"}) == {
        "os.path",
        "socket",
        "netcomm.wire",
        "netcomm",
        "netcomm.errors",
        "netcomm.link",
        "netcomm.peer",
        "collections.abc",
        "time",
        "random",
    }


def test_every_module_has_its_place() -> None:
    for name in SOURCES:
        place(name)
    assert set(LIBRARY) <= NAMES


@pytest.mark.parametrize("name", SOURCES)
def test_imports_point_only_upward(name: str) -> None:
    for imported in internal(name):
        if imported == "":  # the package itself, which imports the whole library
            assert place(name) >= len(LIBRARY), f"{name} imports the package"
        else:
            assert place(imported) < place(name), f"{name} imports {imported}"


def test_the_package_imports_the_library_and_nothing_on_top() -> None:
    found = imports((PACKAGE / "__init__.py").read_text(), NAMES)
    assert {name.removeprefix("netcomm.") for name in found if name.startswith("netcomm.")} <= set(LIBRARY)


def test_the_protocol_and_the_transport_do_not_know_each_other() -> None:
    transport = {"places", "link"}
    for name in LIBRARY:
        if name.startswith("protocol"):
            assert not internal(name) & transport, name
    for name in transport:
        assert not [imported for imported in internal(name) if imported.startswith("protocol")], name


@pytest.mark.parametrize("name", LIBRARY)
def test_only_places_and_link_import_sockets(name: str) -> None:
    if name not in ("places", "link", "peer"):
        assert external(name) & SOCKETS == set()


def test_peer_uses_socket_for_the_hosts_name_only() -> None:
    tree = ast.parse(SOURCES["peer"])
    assert external("peer") & SOCKETS <= {"socket"}
    assert not any(isinstance(node, ast.ImportFrom) and node.module == "socket" for node in ast.walk(tree))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "socket"
    }
    assert used <= {"gethostname"}


@pytest.mark.parametrize("name", LIBRARY)
def test_only_some_rooms_know_threads(name: str) -> None:
    if name not in ("peer", "link", "callbacks", "dispatcher", "leadership", "logs", "process", "storage", "keeper"):
        assert external(name) & THREADS == set()


@pytest.mark.parametrize("name", SANS_IO)
def test_the_core_has_no_clock_and_no_chance(name: str) -> None:
    assert external(name) & (CLOCKS_AND_CHANCE | SOCKETS | THREADS) == set()


@pytest.mark.parametrize("name", LIBRARY)
def test_no_module_imports_a_database(name: str) -> None:
    assert external(name) & DATABASES == set()


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_needs_nothing_but_the_standard_library(name: str) -> None:
    assert external(name) <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", sorted((ROOT / "storage").glob("*.py")), ids=lambda path: path.stem)
def test_plug_ins_import_little_of_netcomm(path: Path) -> None:
    found = {name for name in imports(path.read_text(), NAMES) if name.split(".")[0] == "netcomm"}
    assert found <= {"netcomm.storage", "netcomm.message", "netcomm.errors", "netcomm.logs"}


def run(code: str) -> str:
    """The output of a fresh interpreter, in which every warning is an error."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def test_importing_netcomm_imports_no_extras() -> None:
    loaded = set(run("import sys, netcomm; print(*sys.modules, sep='\\n')").splitlines())
    assert "netcomm.peer" in loaded
    assert {name.split(".")[0] for name in loaded} & (EXTRAS | DATABASES) == set()
    assert {f"netcomm.{name}" for name in ("cli", "demo", "testing")} & loaded == set()


def test_importing_netcomm_starts_no_thread_and_configures_no_logging() -> None:
    code = (
        "import logging, threading, netcomm\n"
        "log = logging.getLogger('netcomm')\n"
        "print(threading.active_count(), logging.root.handlers, log.level, *map(type, log.handlers))"
    )
    assert run(code).strip() == "1 [] 0 <class 'logging.NullHandler'>"


@pytest.mark.parametrize("name", LIBRARY)
def test_every_module_of_the_library_can_be_imported_first(name: str) -> None:
    # A circle of imports shows only when somebody enters it at the wrong place.
    assert run(f"import netcomm.{name}; print('done')").strip() == "done"
