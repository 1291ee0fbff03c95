"""The guide, the reference and the gallery are complete, and all their links lead somewhere."""

import json
import re
from pathlib import Path

import pytest
import yaml

from neural_alignment import alignments, shipped
from neural_alignment import config as configuration
from neural_alignment.training.costs import regulariser_products
from website import checks, gallery, keys, notebooks, pages, pictures, reference

ROOT = Path(__file__).parent.parent
GUIDE = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
RULES = "docs/how_rules_work.md"
SECTIONS = {
    name: text
    for text in re.split(r"^(?=##+ )", (ROOT / RULES).read_text(), flags=re.MULTILINE)
    for name in re.findall(r"^### .*\(`(\w+)`\)$", text, re.MULTILINE)
}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *GUIDE])
def test_links_lead_to_files_and_headings(page):
    """On GitHub and on the site."""
    for target in pages.links((ROOT / page).read_text()):
        pages.resolve(page, target)


@pytest.mark.parametrize("page", GUIDE)
def test_pages_of_the_guide_are_links_where_they_are_named(page):
    text = pages.CODE.sub("", (ROOT / page).read_text())
    assert re.findall(r"(?<!\[)`docs/\w+\.md`", text) == []


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("missing.md", "there is no docs/missing.md"),
        ("rules.md#missing", "docs/rules.md has no heading #missing"),
        ("/docs/rules.md", "/docs/rules.md leads out of the repository"),
        ("../../rules.md", "../../rules.md leads out of the repository"),
    ],
)
def test_a_wrong_link_is_found(target, reason):
    [link] = pages.links(f"[text]({target}) [elsewhere](https://example.com)\n```\n[code](none.md)\n```\n")
    with pytest.raises(pages.MissingTargetError, match=re.escape(reason)):
        pages.resolve("docs/rules.md", link)
    assert pages.resolve("docs/rules.md", "../README.md#glossary") == ("README.md", "glossary")


def test_every_public_name_is_in_the_reference_and_has_a_docstring():
    modules = reference.modules()
    for module, names in modules.items():
        text = reference.page(module, names)
        assert reference.docstring(module), module
        assert [each.name for each in names if not each.documented] == [], module
        assert all(f"::: {module}.{each.name}\n" in text for each in names), module
    listed = {each[:2] for names in modules.values() for each in names}
    for module in reference.public_modules():
        assert {reference.define(module, name)[:2] for name in reference.public(module)} <= listed, module


def test_the_reference_has_every_rule():
    assert sorted(reference.public("neural_alignment.alignments")) == sorted(alignments.__all__)


def test_the_reference_has_the_names_that_are_imported_at_their_first_use():
    import neural_alignment

    found = {name: f"neural_alignment.{room}" for name, room in neural_alignment._NAMES.items()}
    assert reference.top_names() == found
    rooms = {module.split(".")[1] for module in reference.modules() if module.startswith("neural_alignment.")}
    assert rooms >= neural_alignment._ROOMS
    assert reference.define("neural_alignment.training", "load_weights").module.endswith("initial_state")
    with pytest.raises(LookupError, match=r"neural_alignment.training has no load_weight$"):
        reference.define("neural_alignment.training", "load_weight")


def test_docstrings_keep_their_text():
    before = "Overlap <B^T x, z>; `a < b`.\n\n    m <- b m\n\n"
    after = "\n\nRaises:\n    ValueError: if"
    changed = reference.markdown(f"{before}Returns:\n    - `norm` (d,): ||W||.\n    - more{after}")
    assert changed.startswith(before.replace("<B", "&lt;B") + "**Returns:**\n\n- `norm` (d,): ||W||.\n- more\n")
    assert changed.endswith(after)
    assert reference.markdown("Reads:\n- one\n- two") == "Reads:\n\n- one\n- two"


def test_every_rule_has_a_section_with_its_picture():
    assert set(SECTIONS) == {name for name in alignments.RULES if name != "shrinking"}
    for name, text in SECTIONS.items():
        assert f"](pictures/{name}.svg)" in text
        [block] = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        assert alignments.from_config(yaml.safe_load(block)["alignment"]).rule == name


def test_the_pictures_are_those_that_the_program_draws():
    """`python -m website pictures` makes them."""
    assert set(pictures.PICTURES) == {"backprop", *SECTIONS}
    assert {path.stem for path in pictures.FOLDER.iterdir()} == set(pictures.PICTURES)
    for name, draw in pictures.PICTURES.items():
        assert (pictures.FOLDER / f"{name}.svg").read_text() == draw().svg(), name


def test_the_costs_of_the_rules_are_those_that_are_counted():
    table = (ROOT / "docs" / "rules.md").read_text()
    for name, text in SECTIONS.items():
        [cost] = re.findall(r"^- Cost: (.*)\.$", text, re.MULTILINE)
        if name in alignments.layerwise_rules():
            [block] = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
            count = regulariser_products(alignments.from_config(yaml.safe_load(block)["alignment"]))
            assert cost == f"{count or 'no'} kernel products in addition to those of backpropagation"
        else:
            [row] = re.findall(rf"^\| `{name}` .* \| (\S+/\d).*\|$", table, re.MULTILINE)
            assert cost.startswith(f"{row.rstrip(',')} of the kernel products of backpropagation"), name


def test_the_page_of_keys_describes_every_key_of_the_configurations():
    """Keys of several mappings of one kind are described once; the page names the other mappings."""
    text = keys.page()
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \| (.*?) \| (.+) \|$", text, re.MULTILINE)
    meanings, sections = {row[0]: row[-1] for row in rows}, set(re.findall(r"^## `([\w.]+)`$", text, re.MULTILINE))
    same = {
        other: path
        for path, others in re.findall(r"^## `([\w.]+)`\n\nThe same keys: (.*)\.$", text, re.MULTILINE)
        for other in re.findall(r"`([\w.]+)`", others)
    }
    choices = {*re.findall(r"^### `(\w+): \w+`$", text, re.MULTILINE)}

    def check(path, value):
        assert path in meanings or path.rpartition(".")[2] in choices, path
        inner = [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, dict)]
        place = same.get(path, path)
        if place in sections:
            for each in inner:
                for key, below in each.items():
                    check(f"{place}.{key}", below)

    for name in shipped.names():
        if not name.startswith("search/"):
            for key, value in configuration.plain(configuration.load(name)).items():
                check(key, value)
    assert {"data", "model", "optimization.forward", "alignment.input"} <= sections
    assert same["optimization.backward"] == "optimization.forward"
    assert "| `epochs` | integer, > 0 | required |" in text
    assert "| `model.depth` | `18`, `34`, `50`, `101`, `152` | required |" in text
    assert "| `runtime.precision` | `float32`, `mixed_bfloat16`, `float64` | `float32` |" in text
    assert "| `weight_decay` | number, ≥ 0 | `0.0` |" in text
    assert "| `loss` | mapping (see `loss`) | `kind: cross_entropy` |" in text
    assert "Attributes:" not in text
    assert re.findall(r"^\| .* \|  \|$", text, re.MULTILINE) == []  # Keys without a description.


def test_the_keys_are_a_separate_page_only_on_the_site(tmp_path):
    site = pages.Site(tmp_path)
    site.add_guide()
    assert "## All keys" in (ROOT / "docs" / "training.md").read_text()
    assert "## All keys" not in (tmp_path / "docs" / "training.md").read_text()
    assert "[All keys](keys.md#all-keys)" in (tmp_path / "docs" / "training.md").read_text()
    assert keys.page().startswith("# All keys\n")
    assert pages.navigation()["Guide"]["All keys"] == pages.KEYS


def test_no_page_is_twice_in_the_navigation():
    found = [path for section in pages.NAVIGATION.values() for path in section.values()]
    assert len(found) == len(set(found))


def test_notebooks_become_pages_with_their_outputs(tmp_path):
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["angle 30\n"]},
        {"output_type": "display_data", "data": {"image/png": "iVBORw==", "text/plain": ["<Figure>"]}},
        {"output_type": "execute_result", "data": {"text/plain": ["0.5"]}},
    ]
    table = [{"output_type": "execute_result", "data": {"text/markdown": ["| a |\n", "|---|"], "text/plain": ["<M>"]}}]
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "\n", "$W^T$ and $$a < b$$"]},
        {"cell_type": "code", "source": ["price = '$1$'"], "outputs": outputs},
        {"cell_type": "code", "source": ["%%bash\n", "ls"], "outputs": table},
    ]
    path = tmp_path / "first.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    text, figures = notebooks.markdown(path)
    assert notebooks.title(path) == "Title"
    assert figures == {"first/1.png": b"\x89PNG"}
    code = "```python\nprice = '$1$'\n```\n\n```text\nangle 30\n```\n\n![Figure 1](first/1.png)\n\n```text\n0.5\n```"
    assert text.endswith(f"{code}\n\n```bash\nls\n```\n\n| a |\n|---|\n")
    formulas = notebooks.with_formulas(pages.escaped("$W^T$ and $$a <b$$"))
    assert formulas.startswith("<span><math")
    assert "<msup><mi>W</mi><mi>T</mi></msup>" in formulas
    assert 'display="block"' in formulas
    assert "<mo>&#x0003C;</mo>" in formulas
    assert "$" not in formulas


def test_every_figure_is_in_the_gallery_with_its_command():
    found = gallery.pictures()
    files = {*(ROOT / "results").rglob("*.png")}
    assert {each.path for each_folder in found.values() for each in each_folder} == files
    for each in [each for each_folder in found.values() for each in each_folder]:
        assert re.match(r"(neural-alignment (figure|table|search)|make) ", each.command), each
        assert each.title
    commands = {each.path.name: each.command for each in found["wide_networks"]}
    assert commands["figure_7.png"] == "neural-alignment figure wide_networks/7 --runs benchmarks/results"
    searches = [each for each in found["two_routes"] if "searches" in each.path.parts]
    assert "Searches, activation, scores" in [each.title for each in searches]
    assert {each.command for each in searches} == {"make two-routes-rates"}
    page = gallery.page()
    assert "(../results/wide_networks/figure_7.png)" in page
    assert "Numbers: [`scores.csv`](../results/two_routes/searches/activation/scores.csv)" in page


def test_the_site_has_the_pages_files_and_folders_that_the_guide_names(tmp_path):
    site = pages.Site(tmp_path)
    site.add_guide()
    home, rules = (tmp_path / "index.md").read_text(), (tmp_path / "docs" / "rules.md").read_text()
    assert "## Glossary" not in home
    assert "](docs/rules.md)" in home
    assert "(glossary.md#glossary)" in rules
    assert "[Published code](published_code.md)" in rules
    assert "&lt;B^T x, z>" in rules
    assert "[Rules and primitives](rules.md#primitives)" in (tmp_path / RULES).read_text()
    assert "| upstream error |" in (tmp_path / "docs" / "glossary.md").read_text()
    assert "source: image_folder" in (tmp_path / "configs" / "photographs" / "symmetric.yaml.md").read_text()
    assert (
        "- [`quickstart.yaml`](quickstart.yaml.md): Symmetric alignment"
        in (tmp_path / "configs" / "index.md").read_text()
    )
    notebook = (tmp_path / "examples" / "1_feedback_alignment.ipynb.md").read_text()
    assert "![Figure 1](1_feedback_alignment/1.png)" in notebook
    assert (tmp_path / "results" / "two_routes" / "figure_3.png").read_bytes()[1:4] == b"PNG"


def test_code_is_copied_as_it_is(tmp_path):
    code = "```\n[a](none.md) <B> 1 ± 2\ntext\n- item\n```"
    pages.Site(tmp_path).write("README.md", "page.md", f"<!-- table -->\n1 ± 2\n{code}\n")
    assert (tmp_path / "page.md").read_text() == f"1\xa0±\xa02\n{code}\n"


def test_the_check_of_the_site_finds_each_kind_of_problem(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "modules", lambda: {"optimizers": [reference.Name("Adam", "optimizers.adam", True)]})
    (tmp_path / "reference").mkdir()
    right = '<h1 id="optimizers.Adam">Adam</h1><a href="../index.html#here">x</a><img src="../index.html">'
    (tmp_path / "reference" / "optimizers.html").write_text(right)
    (tmp_path / "index.html").write_text('<p id="here">a</p><a href="https://example.com/">outside</a>')
    assert checks.problems(tmp_path) == []
    wrong = {
        '<a href="none.html">x</a>': "index.html: none.html: no such file",
        '<a href="reference/optimizers.html#Sgd">x</a>': "index.html: reference/optimizers.html#Sgd: no such anchor",
        '<script src="https://example.com/x"></script>': "index.html: loads https://example.com/x from another host",
        "<b^t x>": "index.html: <b^t> is no tag of a page",
    }
    for text, problem in wrong.items():
        (tmp_path / "index.html").write_text(f'<p id="here">{text}</p>')
        assert checks.problems(tmp_path) == [problem]
    (tmp_path / "index.html").write_text('<p id="here"></p>')
    (tmp_path / "reference" / "optimizers.html").write_text("")
    assert checks.problems(tmp_path) == ["reference: no optimizers.Adam"]
