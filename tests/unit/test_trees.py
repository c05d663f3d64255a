"""Trees come out of YAML, and go back, as they are meant; they are changed and compared by dotted path."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from avb_service.errors import UserError
from avb_service.trees import difference, flatten, override, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1E5", 1e5), ("-2e+3", -2e3), ("1.e-3", 1e-3), ("1_000e2", 1e5), ("1.5e3", 1500.0), ("7", 7),
        ("1.5", 1.5), ("[1e-3, 2]", [1e-3, 2]), ("1e-3x", "1e-3x"), ("'1e-3'", "1e-3"), ("e5", "e5"), ("true", True),
    ],
)  # fmt: skip
def test_yaml_numbers(text, value):
    parsed = parse_yaml(text, "test")
    assert parsed == value
    assert type(parsed) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_survives_yaml_as_python_writes_it(value):
    assert parse_yaml(repr(value), "test") == value
    assert parse_yaml(f"{value:e}", "test") == float(f"{value:e}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"), (b"a: [", "not valid YAML"), (b"- 1\n- 2", "holds list, expected a mapping"),
        (b"", "is empty, expected a mapping"), (b"\xff\xfe\x00", "cannot read"),
        (b"!!python/object/apply:os.system ['true']", "not valid YAML"),
        (b"a: 1\nb: 2\na: 3", "(?s)the key 'a' is given twice.*line 1, column 1.*line 3, column 1"),
        (b"a: 1\n'a': 3", "the key 'a' is given twice"), (b"x: [{y: {z: 1, z: 1}}]", "the key 'z' is given twice"),
        (b"1: a\n1: b", "the key '1' is given twice"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read_are_the_users_to_mend(tmp_path, content, message):
    path = tmp_path / "given.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_yaml(path)
    assert "given.yaml" in str(caught.value)


def test_a_merged_mapping_may_be_overridden():
    text = "base: &base {a: 1, b: 2}\nmine: {<<: *base, b: 3}\nyours: {b: 4, <<: *base}"
    merged = parse_yaml(text, "test")
    assert (merged["mine"], merged["yours"]) == ({"a": 1, "b": 3}, {"a": 1, "b": 4})


TREES = st.recursive(
    st.integers() | st.text(max_size=3) | st.booleans() | st.none() | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, min_size=1, max_size=3),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(st.text("abc", min_size=1, max_size=3), TREES, max_size=3)
PATHS = st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=3).map(".".join)


@given(MAPPINGS, PATHS, st.integers())
def test_an_override_changes_its_path_and_nothing_beside_it(tree, path, value):
    before = yaml.safe_dump(tree)
    changed = flatten(override(tree, path, value))
    assert yaml.safe_dump(tree) == before
    assert changed[path] == value
    prefixes = {path.rsplit(".", cut)[0] for cut in range(path.count(".") + 1)}
    replaced = [key for key in flatten(tree) if key in prefixes or key.startswith(f"{path}.")]
    beside = {key: leaf for key, leaf in flatten(tree).items() if key not in replaced}
    assert {key: leaf for key, leaf in changed.items() if key != path} == beside


MISSING = object()


@given(MAPPINGS, MAPPINGS)
def test_two_trees_differ_exactly_where_lines_say_so(old, new):
    lines = difference(old, new)
    assert (not lines) == (flatten(old) == flatten(new))
    before, after = flatten(old), flatten(new)
    for line in lines:
        path = line.split(": ")[0]
        assert before.get(path, MISSING) != after.get(path, MISSING)
        assert line == f"{path}: {before.get(path, '(absent)')} -> {after.get(path, '(absent)')}"


def test_difference_of_a_changed_an_added_and_a_removed_leaf():
    assert difference({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 5, "e": 4}, "d": 3}) == [
        "a.b: 1 -> 5",
        "a.c: 2 -> (absent)",
        "a.e: (absent) -> 4",
    ]
