"""Every MUST of docs/protocol.md has a number, and every number has a positive and a negative test.

`@pytest.mark.requirement("P-05", "positive")` says of a test that it fails where netcomm does not do what P-05 asks
for, or minds what P-05 allows. "negative" says that it fails where netcomm does what P-05 forbids, or does not answer
to a peer's breach of it as the page says.

The marks are read off the sources, so that this file can be run alone.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Without the introduction, which explains what a MUST and a number are.
PAGE = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8").partition("\n## Words")[2]
DIRECTIONS = ("positive", "negative")
NUMBER = re.compile(r"\*\*\[(P-\d\d)\]\*\*")

# Where a mark stands, its number, and its direction.
Mark = tuple[str, str, str]


# -- The page -----------------------------------------------------------------------------------------------------


def paragraphs(page: str) -> list[str]:
    """Its paragraphs and list items, without blocks of code."""
    return re.split(r"\n\n|\n- ", re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL))


def unnumbered(page: str) -> list[str]:
    """The paragraphs with a MUST that does not follow a number of its own, and those with a number and no MUST."""
    found = []
    for paragraph in paragraphs(page):
        before, *behind = NUMBER.split(paragraph)
        if "MUST" in before or len(behind) not in (0, 2) or (behind and "MUST" not in behind[1]):
            found.append(paragraph)
    return found


def test_every_must_is_numbered() -> None:
    assert unnumbered(PAGE) == []


def test_each_number_from_1_on_stands_at_one_requirement() -> None:
    numbers = sorted(NUMBER.findall(PAGE))
    assert numbers == [f"P-{number:02}" for number in range(1, len(numbers) + 1)]


def test_only_requirements_that_there_are_are_referred_to() -> None:
    assert set(re.findall(r"\[(P-\d+)\]", PAGE)) == set(NUMBER.findall(PAGE))


def test_a_must_that_has_no_number_of_its_own_is_found() -> None:
    page = """
- **[P-01]** It MUST have a number. **[P-02]** Each of its own, it MUST.
- It MUST have one here, too.
- In front of the MUST: **[P-03]** the number.
- **[P-04]** This
  MUST do.

Even in a paragraph, the number MUST come first: **[P-05]** it MUST.
"""
    assert [paragraph.split()[0] for paragraph in unnumbered(page)] == ["**[P-01]**", "It", "In", "Even"]


# -- The tests ----------------------------------------------------------------------------------------------------


def is_mark(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.requirement"


def marks(source: str, path: str) -> Iterator[Mark]:
    """The marks of a test file; one that stands anywhere but at a test has no effect, and fails."""
    tree = ast.parse(source)
    scopes = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.startswith("Test"))]
    found = 0
    for node in (node for scope in scopes for node in scope.body):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            for call in filter(is_mark, (inner for part in node.decorator_list for inner in ast.walk(part))):
                assert isinstance(call, ast.Call)
                number, direction = map(ast.literal_eval, call.args)
                found += 1
                yield f"{path}::{node.name}", number, direction
    assert found == sum(map(is_mark, ast.walk(tree))), f"a requirement in {path} that is no mark of a test"


def all_marks() -> list[Mark]:
    return [
        mark
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for mark in marks(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
    ]


def complaints(numbers: list[str], found: list[Mark]) -> list[str]:
    """What is missing, and what is too much."""
    there = {(number, direction) for _, number, direction in found}
    missing = [
        f"{number} has no {direction} test"
        for number in numbers
        for direction in DIRECTIONS
        if (number, direction) not in there
    ]
    unknown = [
        f"{place}: no requirement is {number}, {direction}"
        for place, number, direction in found
        if number not in numbers or direction not in DIRECTIONS
    ]
    return missing + unknown


def test_every_requirement_has_a_positive_and_a_negative_test_and_every_mark_a_requirement() -> None:
    found = complaints(NUMBER.findall(PAGE), all_marks())
    assert not found, "\n".join(found)


def test_marks_are_found_where_they_count() -> None:
    source = """
import pytest
@pytest.mark.requirement("P-01", "positive")
@pytest.mark.requirement("P-02", "negative")
def test_one(): ...
class TestMore:
    @pytest.mark.parametrize("x", [1, pytest.param(2, marks=pytest.mark.requirement("P-03", "positive"))])
    def test_two(self, x): ...
"""
    assert list(marks(source, "file")) == [
        ("file::test_one", "P-01", "positive"),
        ("file::test_one", "P-02", "negative"),
        ("file::test_two", "P-03", "positive"),
    ]


def test_a_mark_that_is_missing_or_too_much_is_found() -> None:
    found = [("a", "P-01", "positive"), ("b", "P-01", "negative"), ("c", "P-02", "positive")]
    assert complaints(["P-01"], found[:2]) == []
    assert complaints(["P-01"], found[:1]) == ["P-01 has no negative test"]
    assert complaints(["P-01"], found) == ["c: no requirement is P-02, positive"]
    assert complaints(["P-01"], [*found[:2], ("d", "P-01", "both")]) == ["d: no requirement is P-01, both"]


def test_a_mark_that_is_not_at_a_test_is_found() -> None:
    for source in (
        '@pytest.mark.requirement("P-01", "positive")\ndef helper(): ...',
        'CASES = [pytest.param(1, marks=pytest.mark.requirement("P-01", "positive"))]',
    ):
        with pytest.raises(AssertionError, match="no mark of a test"):
            list(marks(source, "file"))
