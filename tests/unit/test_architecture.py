"""The rules of the rooms: who may import what. They are read off the sources, so that nothing has to run for it."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "netcomm"
STORAGE = ROOT / "storage"

# Modules that stand in no folder, which all may use. Imports point only upward in this list, and in the next one.
VOCABULARY = [
    "errors",
    "descriptors",
    "logs",
    "clocks",
    "callbacks",
    "deadlines",
    "limits",
    "message",
    "storage",
    "host_storage",
    "host_changes",
    "memory_storage",
    "storage_url",
    "connections",
]
LIBRARY = [
    *VOCABULARY,
    "protocol",
    "protocol.wall_clock",
    "protocol.batch",
    "protocol.open_run",
    "protocol.envelope",
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
    "protocol.admission",
    "protocol.remote_peer",
    "protocol.complaints",
    "protocol.reading",
    "protocol.storage_sync",
    "protocol.diagnosis",
    "protocol.discarding",
    "protocol.sessions",
    "protocol.messaging",
    "protocol.extension",
    "protocol.extensions",
    "protocol.node",
    "transport",
    "transport.addresses",
    "transport.byte_stream",
    "transport.waker",
    "transport.bell",
    "transport.spin",
    "transport.acceptor",
    "transport.dialer",
    "transport.connection",
    "transport.lingering",
    "transport.link",
    "runtime",
    "runtime.process",
    "runtime.lifecycle",
    "runtime.dispatcher",
    "runtime.manual_dispatcher",
    "runtime.leadership",
    "runtime.storage_worker",
    "runtime.handover",
    "runtime.loop",
    "runtime.callback_runner",
    "runtime.group_commit",
    "runtime.sender",
    "runtime.attachment",
    "runtime.runtime",
    "peer",
    "connector",
    "listener",
]
# What stands on the library: programs and tools for tests, which may use sockets and threads as any program does.
ON_TOP = [
    "testing.proxy",
    "testing.vectors",
    "testing.host_steps",
    "testing.storage_contract",
    "testing.*",
    "testing",
    "cli.group",
    "cli.output",
    "cli.queue.backlog",
    "cli.queue.drop",
    "cli.queue.export",
    "cli.queue.list",
    "cli.queue.show",
    "cli.queue",
    "cli.demo.plan",
    "cli.demo.journal",
    "cli.demo.judge",
    "cli.demo.roles",
    "cli.demo.director",
    "cli.demo.show",
    "cli.demo",
    "cli",
    "__main__",
]
# The rooms of the plug-ins that are packages. Imports point only upward in these lists.
PLUG_INS = {
    "netcomm_sqlite": [
        "failures",
        "stream_table",
        "message_table",
        "position_table",
        "log_table",
        "host_table",
        "loading",
        "schema",
        "names",
        "blocks",
        "forks",
        "owner_lock",
        "file_watch",
        "disk_space",
        "open_file",
        "look",
        "owned_file",
        "storage",
    ],
    "netcomm_mongodb": [
        "errors",
        "documents",
        "host_documents",
        "connection",
        "bulk",
        "parts",
        "head_record",
        "host_part",
        "head",
        "inserter",
        "lease",
        "messages",
        "message_reader",
        "garbage",
        "rows",
        "row_reader",
        "sweeper",
        "steps",
        "owner",
        "storage",
    ],
}
SQLITE_TABLES = {"stream_table", "message_table", "position_table", "log_table", "host_table", "loading", "schema"}
SQLITE_DISK = {"names", "blocks", "forks", "owner_lock", "file_watch", "disk_space"}
SANS_IO = ["deadlines", "limits", "message", *(name for name in LIBRARY if name.startswith("protocol"))]

# What users start with.
ENTRANCES = {"peer", "connector", "listener"}
# By folder, those that it may import from, and nothing of others.
FOLDERS: dict[str, set[str]] = {
    "vocabulary": set(),
    "protocol": {"vocabulary"},
    "transport": {"vocabulary"},
    "runtime": {"vocabulary", "protocol", "transport"},
    "entrances": {"vocabulary", "protocol", "transport", "runtime"},
    "testing": {"vocabulary", "protocol", "transport", "runtime", "entrances"},
    "cli": {"vocabulary", "protocol", "entrances", "testing"},
}

MOST_LINES, MOST_METHODS = 600, 30
# Larger ones, each with its reason.
LARGE_FILES = {
    "netcomm/testing/storage_contract.py",  # one contract, which a plug-in's author reads from top to bottom
}
LARGE_CLASSES = {
    "QueueStorageContract",  # its methods are the contract's tests
    "HostStorageContract",  # as are those of this one
    "FaultProxy",  # each fault is a verb of its own, and users find all of them in one place
}

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
LIBRARY_FILES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "storage").rglob("*.py")])
NAMES = set(SOURCES)


@cache
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


PLUG_IN_FILES = sorted(STORAGE.rglob("*.py"))


def plug_in_parts(path: Path) -> tuple[str, ...]:
    """The dotted name of a plug-in's file, in its parts."""
    return path.relative_to(STORAGE).with_suffix("").parts


def plug_in_imports(path: Path) -> set[str]:
    names = {*NAMES, *(".".join(plug_in_parts(each)) for each in PLUG_IN_FILES)}
    return imports(path.read_text(), names, ".".join(plug_in_parts(path)[:-1]))


def rooms_imported(plug_in: str, room: str) -> set[str]:
    """The rooms of its own package that a room imports; "" for the package itself."""
    found = plug_in_imports(STORAGE / plug_in / f"{room}.py")
    return {name.removeprefix(plug_in).removeprefix(".") for name in found if name.split(".")[0] == plug_in}


def place(name: str) -> int:
    order = [*LIBRARY, *ON_TOP]
    if name.startswith("testing.") and name not in order:
        name = "testing.*"
    return order.index(name)


def folder_of(name: str) -> str:
    """The folder of a module; that of a module which stands by itself, see VOCABULARY and ENTRANCES."""
    first = name.split(".")[0]
    if first in VOCABULARY:
        return "vocabulary"
    return "entrances" if first in ENTRANCES else "cli" if first == "__main__" else first


def test_the_reader_of_imports_finds_them_all() -> None:
    source = """
import os.path, socket as s
from netcomm import wire, Peer
from netcomm.errors import NetcommError
from . import session
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
    assert imports(source, {"wire", "session", "peer", "errors"}) == {
        "os.path",
        "socket",
        "netcomm.wire",
        "netcomm",
        "netcomm.errors",
        "netcomm.session",
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


@pytest.mark.parametrize("name", SOURCES)
def test_folders_import_only_the_folders_below_them(name: str) -> None:
    folder = folder_of(name)
    allowed = {folder, *FOLDERS[folder]}
    for imported in internal(name):
        if imported:
            assert folder_of(imported) in allowed, f"{name} imports {imported}"


@pytest.mark.parametrize("path", LIBRARY_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_classes_are_of_a_size_that_one_can_keep_in_mind(path: Path) -> None:
    source = path.read_text()
    name = str(path.relative_to(ROOT))
    if name not in LARGE_FILES:
        assert source.count("\n") <= MOST_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and node.name not in LARGE_CLASSES:
            methods = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
            assert len(methods) <= MOST_METHODS, node.name


def test_exceptions_of_size_are_still_needed() -> None:
    for name in LARGE_FILES:
        assert (ROOT / name).read_text().count("\n") > MOST_LINES
    classes = [node for path in LIBRARY_FILES for node in ast.walk(ast.parse(path.read_text()))]
    counts = {
        node.name: sum(isinstance(each, ast.FunctionDef) for each in node.body)
        for node in classes
        if isinstance(node, ast.ClassDef)
    }
    assert all(counts[name] > MOST_METHODS for name in LARGE_CLASSES)


def test_the_package_imports_the_library_and_nothing_on_top() -> None:
    found = imports((PACKAGE / "__init__.py").read_text(), NAMES)
    assert {name.removeprefix("netcomm.") for name in found if name.startswith("netcomm.")} <= set(LIBRARY)


@pytest.mark.parametrize("name", LIBRARY)
def test_only_the_transport_imports_sockets(name: str) -> None:
    if not name.startswith("transport."):
        assert external(name) & SOCKETS == set()


@pytest.mark.parametrize("name", LIBRARY)
def test_only_some_rooms_know_threads(name: str) -> None:
    rooms = ("peer", "callbacks", "descriptors", "logs", "memory_storage", "transport.dialer", "transport.waker")
    if not name.startswith("runtime") and name not in rooms:
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


@pytest.mark.parametrize("path", PLUG_IN_FILES, ids=lambda path: ".".join(plug_in_parts(path)))
def test_plug_ins_import_little_of_netcomm(path: Path) -> None:
    found = {name for name in plug_in_imports(path) if name.split(".")[0] == "netcomm"}
    allowed = ("storage", "host_storage", "host_changes", "message", "errors", "logs")
    assert found <= {f"netcomm.{name}" for name in allowed}


def test_every_room_of_a_plug_in_has_its_place() -> None:
    packages = {path.parent.name: set[str]() for path in PLUG_IN_FILES if path.parent != STORAGE}
    for path in PLUG_IN_FILES:
        if path.parent != STORAGE and path.name != "__init__.py":
            packages[path.parent.name].add(path.stem)
    assert packages == {name: set(rooms) for name, rooms in PLUG_INS.items()}
    assert all(len(rooms) == len(set(rooms)) for rooms in PLUG_INS.values())


@pytest.mark.parametrize(("plug_in", "room"), [(name, room) for name, rooms in PLUG_INS.items() for room in rooms])
def test_imports_of_a_plug_in_point_only_upward(plug_in: str, room: str) -> None:
    rooms = PLUG_INS[plug_in]
    for imported in rooms_imported(plug_in, room):
        assert imported in rooms[: rooms.index(room)], f"{room} imports {imported}"


def test_tables_and_the_disk_under_them_do_not_know_each_other() -> None:
    for room in SQLITE_TABLES:
        assert not rooms_imported("netcomm_sqlite", room) & SQLITE_DISK, room
    for room in SQLITE_DISK:
        assert not rooms_imported("netcomm_sqlite", room) & SQLITE_TABLES, room


def run(code: str) -> str:
    """The output of a fresh interpreter, in which every warning is an error."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def test_importing_netcomm_imports_no_extras() -> None:
    loaded = set(run("import sys, netcomm; print(*sys.modules, sep='\\n')").splitlines())
    assert "netcomm.peer" in loaded
    assert {name.split(".")[0] for name in loaded} & (EXTRAS | DATABASES) == set()
    assert {f"netcomm.{name}" for name in ("cli", "testing")} & loaded == set()


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        ("--help", set()),
        ("--version", set()),
        ("queue --help", {"queue"}),
        ("queue export --help", {"queue", "queue.export", "queue.backlog", "output"}),
        ("demo --help", {"demo"}),
    ],
)
def test_a_command_that_does_not_run_is_not_imported(arguments: str, needed: set[str]) -> None:
    code = (
        "import sys, netcomm.cli\n"
        f"sys.argv = ['netcomm', *{arguments.split()!r}]\n"
        "try: netcomm.cli.main()\n"
        "except SystemExit as end: print(end.code, *sys.modules, sep='\\n')"
    )
    loaded = run(code).splitlines()
    assert "0" in loaded
    assert {name for name in loaded if name.startswith("netcomm.cli.")} == {
        f"netcomm.cli.{name}" for name in {"group", *needed}
    }
    assert {name.split(".")[0] for name in loaded} & (EXTRAS | DATABASES) == {"click"}


@pytest.mark.parametrize("name", SOURCES)
def test_only_the_command_imports_click_and_rich(name: str) -> None:
    if name.partition(".")[0] != "cli":
        assert external(name) & {"click", "rich"} == set()


def test_importing_netcomm_starts_no_thread_and_configures_no_logging() -> None:
    code = (
        "import logging, threading, netcomm\n"
        "log = logging.getLogger('netcomm')\n"
        "print(threading.active_count(), logging.root.handlers, log.level, *map(type, log.handlers))"
    )
    assert run(code).strip() == "1 [] 0 <class 'logging.NullHandler'>"
