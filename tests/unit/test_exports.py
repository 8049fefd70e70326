"""What `from netcomm import …` offers: all of it on purpose, and all of it explained."""

import ast
import importlib.util
import inspect
import pickle
import re
import types
from pathlib import Path

import pytest

import netcomm
from netcomm import errors

PACKAGE = Path(netcomm.__file__).parent

ERRORS = [value for value in vars(errors).values() if inspect.isclass(value)]
CLASSES = [name for name in netcomm.__all__ if inspect.isclass(getattr(netcomm, name))]


def test_all_is_complete_and_nothing_in_it_is_missing() -> None:
    public = {
        name
        for name, value in vars(netcomm).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert set(netcomm.__all__) == public
    assert len(netcomm.__all__) == len(set(netcomm.__all__))


def test_a_star_import_gives_what_all_says() -> None:
    namespace: dict[str, object] = {}
    exec("from netcomm import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(netcomm.__all__)


def test_the_names_users_start_with_are_there() -> None:
    assert {"SnakemqConnector", "SnakemqListener", "Peer", "Callback", "Message", "Delivery", "Limits"} <= set(
        netcomm.__all__
    )
    assert issubclass(netcomm.SnakemqConnector, netcomm.Peer)
    assert issubclass(netcomm.SnakemqListener, netcomm.Peer)


def test_every_error_is_exported_and_is_a_netcomm_error() -> None:
    for error in ERRORS:
        assert getattr(netcomm, error.__name__) is error
        assert issubclass(error, netcomm.NetcommError)


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    drawn: dict[str, tuple[str, ...]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.fullmatch(r"((?:│   |    |├── |└── )*)(\w+Error|\w+)(?: \((\w+)\))?(?:  .*)?", line)
        if match is None or match[2] not in vars(errors):
            continue
        depth = len(match[1]) // 4
        path[depth:] = [match[2]]
        drawn[match[2]] = tuple(name for name in (path[depth - 1] if depth else "Exception", match[3]) if name)
    actual = {error.__name__: tuple(base.__name__ for base in error.__bases__) for error in ERRORS}
    assert drawn == actual


def make(error: type[Exception]) -> Exception:
    if error is netcomm.ConnectionRefusedByPeer:
        return netcomm.ConnectionRefusedByPeer("text", 1)
    if error is netcomm.BindError:
        return netcomm.BindError(98, "text")
    return error("text")


@pytest.mark.parametrize("error", ERRORS)
def test_errors_survive_the_way_to_another_process(error: type[Exception]) -> None:
    original = make(error)
    copy = pickle.loads(pickle.dumps(original))
    assert type(copy) is error
    assert str(copy) == str(original)
    assert vars(copy) == vars(original)


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_class_and_method_has_a_docstring(name: str) -> None:
    cls = getattr(netcomm, name)
    # A dataclass without one is given its signature.
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{name}(")
    for attribute, value in vars(cls).items():
        if attribute.startswith("_"):
            continue
        if isinstance(value, classmethod | staticmethod):
            value = value.__func__
        if inspect.isfunction(value) or isinstance(value, property):
            assert value.__doc__, f"{name}.{attribute}"


def test_every_public_constant_is_explained() -> None:
    tree = ast.parse((PACKAGE / "message.py").read_text())
    explained = {
        target.id
        for statement, follower in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(statement, ast.Assign)
        and isinstance(follower, ast.Expr)
        and isinstance(follower.value, ast.Constant)
        and isinstance(follower.value.value, str)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    constants = {
        name
        for name in netcomm.__all__
        if not inspect.isclass(getattr(netcomm, name)) and not callable(getattr(netcomm, name))
    }
    assert constants == {"FLAG_PERSISTENT"}
    assert constants <= explained


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_and_its_public_names_are_explained(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


def test_the_package_is_typed_and_has_a_version() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|(a|b|rc)\d+)?", netcomm.__version__)


def test_the_global_name_storage_is_left_alone() -> None:
    # An application may have a module of that name.
    spec = importlib.util.find_spec("storage")
    assert spec is None or spec.origin is None
