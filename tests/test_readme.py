"""What the README says exists."""

import re
import shlex

import pytest

from salviz.cli import parser
from tests.readme import README, methods_table, replace_between, shipped_table

TEXT = README.read_text()


def test_the_methods_table_is_the_registry() -> None:
    assert replace_between(TEXT, "methods", methods_table()) == TEXT


def test_the_table_of_shipped_classifiers_is_their_cards() -> None:
    assert replace_between(TEXT, "shipped", shipped_table()) == TEXT


COMMANDS = [shlex.split(line)[3:] for line in re.findall(r"^python -m salviz .*$", TEXT, re.MULTILINE)]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_its_commands_parse(arguments: list[str]) -> None:
    assert callable(parser().parse_args(arguments).run)


def test_it_opens_with_the_two_commands() -> None:
    block = TEXT.split("```")[1]
    assert block.split("\n")[1:3] == [
        "pip install -r requirements.txt && streamlit run app.py",
        "pip install -r requirements-dev.txt && pytest",
    ]


def test_files_it_names_are_there() -> None:
    for name in (*re.findall(r"\]\((assets/[^)]+)\)", TEXT), "salviz/images/gallery.py", ".ci/run"):
        assert (README.parent / name).is_file(), name
