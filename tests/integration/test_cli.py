"""The command `netcomm` as such: its help, its version, and what it says where it can't run."""

import pytest

import netcomm
from tests.integration.processes import run

COMMANDS = {"netcomm": ["demo", "queue"], "netcomm queue": ["drop", "export", "list", "show"]}


def test_it_shows_its_version() -> None:
    assert run("-m", "netcomm", "--version") == (0, f"netcomm, version {netcomm.__version__}")


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_it_says_how_to_get_it(missing: str) -> None:
    code, output = run("-c", f"import sys; sys.modules[{missing!r}] = None; import netcomm.cli; netcomm.cli.main()")
    assert code == 2
    assert len(output.splitlines()) == 1
    assert "pip install 'netcomm[cli]'" in output


@pytest.mark.parametrize("group", COMMANDS)
@pytest.mark.parametrize("ask", [["--help"], ["-h"], []])
def test_a_group_lists_its_commands(group: str, ask: list[str]) -> None:
    code, output = run("-m", *group.split(), *ask)
    assert code == (0 if ask else 2)
    listed = output[output.index("Commands:") :].splitlines()[1:]
    assert [line.split()[0] for line in listed] == COMMANDS[group]


@pytest.mark.parametrize("command", [f"{group} {name}" for group, names in COMMANDS.items() for name in names])
def test_what_a_group_says_of_a_command_is_what_the_command_says(command: str) -> None:
    group, _, name = command.rpartition(" ")
    _, listed = run("-m", *group.split(), "--help")
    code, output = run("-m", *command.split(), "--help")
    assert code == 0
    assert output.startswith(f"Usage: {command}")
    summary = next(line.split(maxsplit=1)[1] for line in listed.splitlines() if line.split()[:1] == [name])
    assert output.splitlines()[2].strip() == summary


@pytest.mark.parametrize(("group", "name"), [("netcomm", "group"), ("netcomm queue", "backlog")])
def test_a_module_that_is_no_command_is_not_taken_for_one(group: str, name: str) -> None:
    code, output = run("-m", *group.split(), name)
    assert code == 2
    assert f"No such command '{name}'" in output
