"""The corpus, and what it is made of, in plain Python: it shows no defect, and it is small."""

import hashlib
from functools import partial
from pathlib import Path

import pytest

from tests.fuzz.__main__ import CORPUS, main
from tests.fuzz.measures import fails
from tests.fuzz.planted import DEFECTS, HIDDEN
from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS, run_input

FILES = sorted(CORPUS.iterdir())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name[:12])
def test_an_input_of_the_corpus_shows_no_defect(file: Path) -> None:
    run_input(file.read_bytes())


def test_the_inputs_to_begin_with_show_no_defect() -> None:
    for data in seeds():
        run_input(data)


def test_the_corpus_is_small_and_named_by_content_and_reaches_every_target() -> None:
    contents = [file.read_bytes() for file in FILES]
    assert [file.name for file in FILES] == [hashlib.sha1(data).hexdigest() for data in contents]
    assert len(FILES) <= 200
    assert sum(map(len, contents)) <= 200_000
    assert {data[0] % len(TARGETS) for data in contents} == set(range(len(TARGETS)))


@pytest.mark.parametrize("name", DEFECTS)
def test_the_corpus_finds_each_planted_defect_but_the_hidden_one(name: str) -> None:
    with DEFECTS[name].planted():
        found = any(fails(partial(run_input, file.read_bytes())) for file in FILES)
    assert found == (name != HIDDEN)


def test_a_replay_shows_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "input"
    file.write_bytes(b"\0\xff\x09\0" + (161).to_bytes(4) + b"\x8f")
    arguments = ["fuzz", "--replay", str(file)]
    monkeypatch.setattr("sys.argv", arguments)
    assert main() == 0
    monkeypatch.setattr("sys.argv", [*arguments, "--plant", "size-over-limit"])
    with pytest.raises(AssertionError):
        main()
