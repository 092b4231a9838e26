import pytest

from sweeps.yaml_source import Position, read


def data(text: str):
    document = read(text.encode())
    assert document.problems == []
    return document.data


def only_problem(text: str) -> str:
    document = read(text.encode())
    assert len(document.problems) == 1, [str(problem) for problem in document.problems]
    return str(document.problems[0])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 0.0001),
        ("1E5", 1e5),
        ("-2.5", -2.5),
        (".5", 0.5),
        ("3.", 3.0),
        ("12", 12),
        ("-3", -3),
        ("1_000", 1000),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("True", "True"),
        ("2020-01-01", "2020-01-01"),
        ("1:30", "1:30"),
        ("010", "010"),
        ("0x1f", "0x1f"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("1e999", "1e999"),
        ("9223372036854775808", "9223372036854775808"),
        ("'1'", "1"),
        ('"true"', "true"),
    ],
)
def test_scalars_mean_what_people_expect(text, value):
    found = data(f"key: {text}")["key"]
    assert found == value
    assert type(found) is type(value)


def test_keys_are_text():
    assert data("{on: 1, 2: 3, null: 4}") == {"on": 1, "2": 3, "null": 4}


def test_every_key_and_value_has_its_place():
    document = read(b"a:\n  - x\n  - {b: 1}\n")
    assert document.values["a", 1, "b"] == Position(3, 9)
    assert document.keys["a", 1, "b"] == Position(3, 6)
    assert document.at(("a", 1, "nothing", "here")) == document.values["a", 1]


def test_anchors_and_merge_keys_are_read():
    assert data("x: &a {p: 1, q: 2}\ny: {<<: *a, q: 3}\nz: *a") == {
        "x": {"p": 1, "q": 2},
        "y": {"p": 1, "q": 3},
        "z": {"p": 1, "q": 2},
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "a (line 3, column 1): stands twice; the first is on line 1"),
        ("a:\n\tb: 1", "line 2, column 1: a tab"),
        ("a: !!python/object:os.system x", "line 1, column 4: the YAML tag '!!python/object:os.system'"),
        ("!x a: 1", "line 1, column 1: the YAML tag '!x'"),
        ("a: &x [*x]", "inside its own anchor"),
        ("a: &x\n  <<: *x", "'<<' takes an alias of a mapping, one that is not around it"),
        ("a: *x", "names an anchor that is not there"),
        ("a: b: c", "a ': ' inside a value"),
        ("a: [1", "line 1, column 6: a '[' is not closed"),
        ("a: 'x", "a quote is not closed"),
        ("? [1]\n: 2", "a key must be text"),
        ("a: 1\n---\nb: 2", "a second '---' document"),
        ("a: x\x00", "U+0000"),
        ('a: "\\ud800"', "U+D800 may not stand in text"),
        ("[" * 100 + "]" * 100, "nested more than 60 levels"),
    ],
)
def test_mistakes_are_located_and_explained(text, said):
    assert said in only_problem(text)


def test_text_must_be_utf8():
    assert "line 2, column 1: byte 8 is not UTF-8" in str(read(b"a: b\nc: \xff").problems[0])


def test_a_broken_part_leaves_the_others():
    document = read(b"a: 1\na: 2\nb: !t 3\nc: 4")
    assert len(document.problems) == 2
    assert document.data == {"a": 1, "b": 3, "c": 4}


def test_aliases_that_blow_up_are_stopped():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]" for i in range(9)]
    assert "aliases blow the file up" in only_problem("\n".join(lines))
