"""How YAML is read and written: by the core schema of YAML 1.2, within limits, and alike for every loader."""

import math
from pathlib import Path

import pytest
import yaml
from helpers import for_each

from neural_alignment import config as configuration
from neural_alignment.config import yaml_files, yaml_reader, yaml_writer
from neural_alignment.errors import ConfigError

ROOT = Path(__file__).parent.parent
COMMITTED = sorted(path for folder in ("configs", "results") for path in (ROOT / folder).rglob("*.yaml"))
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")


@pytest.fixture(params=["libyaml", "python"])
def loader(request, monkeypatch):
    """Reads with each of PyYAML's parsers in turn."""
    if request.param == "libyaml" and not yaml.__with_libyaml__:
        pytest.skip("PyYAML was built without libyaml")
    monkeypatch.setattr(yaml_reader, "LOADER", yaml.CSafeLoader if request.param == "libyaml" else yaml.SafeLoader)


def parse(text):
    return yaml_reader.parse(text, "here")


def same(one, other):
    """Whether two values are equal, types included."""
    return repr(one) == repr(other)


# The core schema. What YAML 1.1 makes of some of these is in the comment.
PLAIN = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "nULL": "nULL",
    "true": True,
    "FALSE": False,
    "tRUE": "tRUE",
    **{word: word for word in ("on", "off", "yes", "no", "On", "OFF", "Yes", "NO", "y", "n")},  # booleans
    "0": 0,
    "-0": 0,
    "+12": 12,
    "017": 17,  # 15
    "089": 89,
    "0o17": 15,  # a string
    "0O17": "0O17",
    "-0o17": "-0o17",
    "0x1F": 31,
    "-0x1F": "-0x1F",  # -31
    "0b1": "0b1",  # 1
    "1_000": "1_000",  # 1000
    "1_000.5": "1_000.5",  # 1000.5
    "190:20:30": "190:20:30",  # 685230
    "1:30.5": "1:30.5",  # 90.5
    "2001-01-01": "2001-01-01",  # a date
    "2001-12-14t21:59:43.10-05:00": "2001-12-14t21:59:43.10-05:00",  # a time
    "5e-3": 0.005,  # a string
    "1e3": 1000.0,  # a string
    "1E+3": 1000.0,  # a string
    "1.0e3": 1000.0,  # a string
    ".5": 0.5,
    "-.5": -0.5,
    "5.": 5.0,
    "5.e1": 50.0,
    ".": ".",
    "+.inf": math.inf,
    "-.INF": -math.inf,
    "inf": "inf",
    ".nan": math.nan,
    "+.nan": "+.nan",
    "nan": "nan",
    "1.2.3": "1.2.3",
    "=": "=",  # an error
    "<<": "<<",  # an error
    "9223372036854775807": 2**63 - 1,
    "-9223372036854775808": -(2**63),
    "000000000000000000000000000000017": 17,
}


@for_each("text", PLAIN)
def test_plain_text_is_read_by_the_core_schema(loader, text):
    assert same(parse(f"a: {text}"), {"a": PLAIN[text]})
    assert same(parse(text), PLAIN[text])
    assert parse(f"a: '{text}'") == {"a": text}


@for_each(
    "text, value",
    [
        ("!!str 5", "5"),
        ("! 5", "5"),
        ("!!int '5'", 5),
        ("!!float 5", 5.0),
        ("!!bool 'true'", True),
        ("!!null ''", None),
        ("!!seq [1]", [1]),
        ("!!map {a: 1}", {"a": 1}),
        ("[&x [1, 2], *x]", [[1, 2], [1, 2]]),
        ("{null: 1}", {"null": 1}),
        ("{'~': 1, \"<<\": 2, !!str 5: 3}", {"~": 1, "<<": 2, "5": 3}),
        ("\ufeffa: 1", {"a": 1}),
        ("%YAML 1.2\n---\na: 1\n...\n", {"a": 1}),
        ("a: |\n  x\n  y\n", {"a": "x\ny\n"}),
    ],
)
def test_other_forms(loader, text, value):
    assert same(parse(text), value)


def test_what_an_alias_repeats_is_a_copy(loader):
    data = parse("a: &x {b: [1]}\nc: *x\n")
    data["a"]["b"].append(2)
    assert data["c"] == {"b": [1]}


BIG = 999_000
REFUSED = {
    "sequences 5,000 deep": ("a: " + "[" * 5000, "nest"),
    "mappings 3,000 deep": ("{a: " * 3000, "64 mappings and sequences are nested"),
    "block sequences": ("- " * 5000 + "x", "64 mappings and sequences are nested"),
    "block mappings": ("".join(" " * depth + "a:\n" for depth in range(500)), "64 mappings and sequences are nested"),
    "depth by aliases": ("".join(f"a{n}: &a{n} [*a{n - 1}]\n" if n else "a0: &a0 [x]\n" for n in range(999)), "nested"),
    "a billion laughs": (
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "20,000 values, aliases expanded",
    ),
    "an alias of itself": ("a: &a [*a]", "is part of the value that it repeats"),
    "a mapping in itself": ("a: &a {b: {c: *a}}", "is part of the value that it repeats"),
    "an alias of nothing": ("a: *b", "has no anchor before it"),
    "many aliases": ("a: &a x\nb: [" + "*a," * 25_000 + "]", "20,000 values"),
    "many keys": ("".join(f"k{n}: 1\n" for n in range(15_000)), "20,000 values"),
    "many items": ("a: [" + "1," * 25_000 + "]", "20,000 values"),
    "many tag directives": ("".join(f"%TAG !a{n}! x\n" for n in range(20_000)), "lines begin with %"),
    "a long integer": ("a: " + "9" * 100_000, "between -2**63 and 2**63 - 1"),
    "a longer integer": ("a: -" + "9" * 300_000, "between -2**63 and 2**63 - 1"),
    "a hexadecimal integer": ("a: 0x" + "f" * 100_000, "between -2**63 and 2**63 - 1"),
    "2**63": ("a: 9223372036854775808", "between -2**63 and 2**63 - 1"),
    "a million and one bytes": ("a: " + "x" * 999_998, "1,000,000 bytes"),
    "a duplicate key": ("a: 1\n'a': 2", "duplicate key 'a' (line 2, column 1)"),
    "a duplicate null": ("{null: 1, 'null': 2}", "duplicate key 'null'"),
    "a key that is a number": ("1: 2", "keys must be strings; found '1'"),
    "a key that is a boolean": ("true: 2", "keys must be strings; found 'true'"),
    "a key that is nothing": ("~: 2", "keys must be strings; found '~'"),
    "a key that is a list": ("[a]: 2", "keys must be strings"),
    "a merge key": ("a: &a {b: 1}\nc: {<<: *a}", "merge keys (<<)"),
    "two documents": ("a: 1\n---\nb: 2\n", "a second document begins"),
    "a Python object": (
        "a: !!python/object/apply:os.mkdir [x]",
        "the tag 'tag:yaml.org,2002:python/object/apply:os.mkdir",
    ),
    "a set": ("a: !!set {x}", "tag"),
    "a tag of its own": ("a: !mine x", "the tag '!mine' is not allowed"),
    "a wrong tag": ("a: !!int x", "'x' is not of its tag"),
    "a tag on the other kind": ("a: !!seq {b: 1}", "tag"),
    "NUL": ("a: \x00", "'\\x00' at position 4"),
    "a control character": ("a: \x80", "'\\x80' at position 4"),
    "a surrogate": ("a: \ud800", "not text in UTF-8"),
    "an escaped surrogate": ('a: "\\ud83d"', "character"),
    "an escape out of range": ('a: "\\UFFFFFFFF"', ""),
    "an open bracket": ("a: [1", ""),
    "a tab": ("a:\n\tb: 1", "\\t" if not yaml.__with_libyaml__ else ""),
}


@for_each("what", REFUSED)
def test_what_is_refused_is_one_line_with_the_source(loader, what):
    text, said = REFUSED[what]
    with pytest.raises(ConfigError) as error:
        parse(text)
    line = str(error.value)
    assert line.startswith("here: not valid YAML: ")
    assert said in line
    assert "\n" not in line
    assert len(line) < 400


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "x" * BIG,
        'a: "' + "x " * (BIG // 2) + '"',
        "a: " + "0" * BIG,
        "a: " + "9" * BIG + ".",
        "#" * BIG,
        "\n" * BIG,
    ],
    ids=["scalar", "quoted", "zeros", "float", "comment", "blank"],
)
def test_a_long_file_of_few_values_is_read(text):
    assert parse(text) is None or len(parse(text)) == 1


@pytest.mark.parametrize("value", ["[" * 5000, "{a: " * 3000, "&a [*a]", "9" * 100_000, "!!python/name:os.mkdir"])
def test_overrides_and_search_files_are_read_by_the_same_rules(tmp_path, value):
    from neural_alignment.search import plan as plans

    with pytest.raises(ConfigError, match=r"^--set epochs=.*not valid YAML"):
        configuration.load(QUICKSTART, [f"epochs={value}"])
    path = tmp_path / "search.yaml"
    path.write_text(f"config: base.yaml\ntrials: {value}\n")
    with pytest.raises(ConfigError, match=r"search\.yaml: not valid YAML"):
        plans.load(str(path))


def test_a_key_path_that_is_too_deep_is_refused():
    with pytest.raises(ConfigError, match="a key path must have fewer than 64 parts; found 5000"):
        configuration.load(QUICKSTART, [".".join(["a"] * 5000) + "=1"])


@pytest.mark.parametrize("key", ["²", "-1", "00", "2", "1" * 5000, "x"])
def test_an_entry_of_a_list_that_is_not_there_is_refused(key):
    with pytest.raises(
        ConfigError, match=r"model\.filters\..*: must name an entry of the list by its number, 0 to 1; found"
    ):
        configuration.load(QUICKSTART, [f"model.filters.{key}=1"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfea\x00:\x00 \x001\x00", "must be text in UTF-8; byte 1 is not"),
        (b"a: \xe9", "must be text in UTF-8; byte 4 is not"),
        (b"\x80\x04\x95.", "must be text in UTF-8"),
        (b"x" * 1_000_001, "at most 1,000,000 bytes"),
        (b"", "the file is empty"),
        (b"\n# nothing\n", "the file is empty"),
        (b"- 1\n", "must hold a mapping; found [1]"),
        (b"hello", "must hold a mapping; found 'hello'"),
    ],
)
def test_files_that_are_no_text_or_no_mapping_are_refused(tmp_path, content, said):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        configuration.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)


def test_bases_are_limited_in_number_and_known_by_any_spelling(tmp_path):
    for number in range(50):
        (tmp_path / f"{number}.yaml").write_text(f"base: {number + 1}.yaml\n")
    with pytest.raises(ConfigError, match=r"32\.yaml|31\.yaml: base: a file may have at most 31 bases"):
        configuration.load(tmp_path / "0.yaml")
    (tmp_path / "a.yaml").write_text(f"base: ../{tmp_path.name}/./a.yaml\n")
    with pytest.raises(ConfigError, match="the files are bases of each other"):
        configuration.load(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("base: ''\n")
    with pytest.raises(ConfigError, match=r"b\.yaml: base: must be a path; found ''"):
        configuration.load(tmp_path / "b.yaml")


def test_a_base_may_be_given_from_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text(f"base: {QUICKSTART}\nepochs: 3\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.yaml").write_text("base: ~/mine.yaml\n")
    assert configuration.load(tmp_path / "other" / "run.yaml").epochs == 3


# Writing.


def read_by_all(text):
    """Returns what this module, and PyYAML's YAML 1.1, read with either parser."""
    loaders = [yaml.SafeLoader, *([yaml.CSafeLoader] if yaml.__with_libyaml__ else [])]
    return [parse(text), *(yaml.load(text, Loader=each) for each in loaders)]


AMBIGUOUS = [
    *PLAIN,
    *"yYnN",
    "0b1",
    "0o7",
    "0x",
    "12e03",
    "685_230.15",
    "1.2.3",
    "._",
    "-",
    "?",
    "a: b",
    "# a",
    " a ",
    "'",
]


@for_each("text", AMBIGUOUS)
def test_a_string_that_some_loader_would_misread_is_quoted(text):
    data = {"a": [text], text or "empty": 1}
    written = yaml_writer.write(data)
    for read in read_by_all(written):
        assert same(read, data), written
    assert parse(yaml_writer.write_inline({"a": text})) == {"a": text}
    if text in "yYnN" and text:
        assert f"'{text}'" in written  # Booleans of the specification of YAML 1.1, though not of PyYAML's.


def test_what_is_written_is_read_alike_by_every_loader():
    import hypothesis  # The import takes seconds.
    from hypothesis import strategies as st

    leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
    values = st.recursive(
        leaves | st.text(max_size=100),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
        max_leaves=6,
    )

    @hypothesis.settings(max_examples=80, deadline=None, derandomize=True)
    @hypothesis.given(st.dictionaries(st.text(max_size=9), values, min_size=1, max_size=3))
    def check(data):
        for text in (yaml_writer.write(data), yaml_writer.write_inline(data)):
            for read in read_by_all(text):
                assert same(read, data), text

    check()


def test_small_and_large_floats_have_a_point():
    text = yaml_writer.write({"a": 1e-8, "b": 1e16, "c": 1e22, "d": -5e-324, "e": 0.1})
    assert text == "a: 1.0e-08\nb: 1.0e+16\nc: 1.0e+22\nd: -5.0e-324\ne: 0.1\n"
    assert yaml_writer.write_inline(1e-8) == "1.0e-08"


def test_committed_files_are_read_alike_by_yaml_1_1():
    for path in COMMITTED:
        text = path.read_text()
        old = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        assert same(old, yaml_files.read(str(path))), path


def test_committed_configurations_of_runs_are_written_as_they_would_be_now():
    runs = [path for path in COMMITTED if path.name == "config.yaml"]
    assert len(runs) > 100
    for path in runs[::20]:
        assert configuration.dump(configuration.load(path)) == path.read_text()
