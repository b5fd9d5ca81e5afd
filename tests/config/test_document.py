"""libyaml, which reads plain files fast, finds in them what PyYAML does, place by place; else PyYAML reads."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml

from qanat.config import document
from qanat.config.document import Document
from tests.support.example_config import everything

PIECES = [*"[]{}\"'|>?!\t\r\\~é", "\n", "  ", "- ", ": ", ", ", " #", "&a ", "*a", "? ", "---", "\r\n", "<<"]
PIECES += ["\u2028", "\x85", "\ufeff", "\U0001f600", "[::1]:8443", "\x01"]
LINES = everything().splitlines()


def tree(node: yaml.Node | None) -> object:
    if node is None:
        return None
    place = (node.tag, node.start_mark.line, node.start_mark.column)
    if isinstance(node, yaml.MappingNode):
        return (*place, [(tree(key), tree(value)) for key, value in node.value])
    if isinstance(node, yaml.SequenceNode):
        return (*place, [tree(one) for one in node.value])
    assert isinstance(node, yaml.ScalarNode)
    return (*place, node.value, bool(node.style))


def both(text: str) -> tuple[object, object]:
    """What a fast look finds in it, None for nothing, and what PyYAML does; a fault is its text."""
    fast = document._compose_fast(text)
    try:
        return tree(fast), tree(yaml.compose(text, yaml.SafeLoader))
    except yaml.YAMLError as error:
        return tree(fast), str(error)


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML has no libyaml here")
def test_what_is_read_fast_is_read_alike() -> None:
    chance, fast_ones = random.Random(1), 0
    for _ in range(1500):
        begin = chance.randrange(len(LINES))
        text = "\n".join(LINES[begin : begin + chance.randrange(1, 8)])
        for _ in range(chance.randrange(3)):
            at = chance.randrange(len(text) + 1)
            text = text[:at] + chance.choice(PIECES) + text[at + chance.randrange(2) :]
        fast, whole = both(text)
        fast_ones += fast is not None
        assert fast in (None, whole), text
    assert fast_ones > 100


@pytest.mark.parametrize(
    "text",
    [
        'clients:\n- name: a\n  allow_connect: &rules ["10.0.0.0/8:*", "*.example.com:443"]\n  allow_listen: *rules\n',
        "# what? - > | ! ---\nlisten: 127.0.0.1:*\n",
    ],
    ids=["aliases", "comment"],
)
@pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML has no libyaml here")
def test_ordinary_files_are_read_fast(text: str) -> None:
    fast, whole = both(text)
    assert fast == whole
    assert fast is not None


@pytest.mark.parametrize("text", ["{a: " * 1000, "- " * 5000, "a: [*x]", 'a: "b'], ids=range(4))
def test_what_libyaml_refuses_is_pyyamls_to_explain(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    found = Document(path, {})
    assert found.read() is None
    assert len(found.faults.found()) == 1


def test_more_aliases_than_a_person_writes_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("a: &a 1\nb: [" + ", ".join(["*a"] * (document.MAX_ALIASES + 1)) + "]\n")
    found = Document(path, {})
    assert found.read() is None
    assert "aliases" in found.faults.found()[0].text
