"""What `docs/conf.py` adds to Sphinx, and that the build looks at links to headings and at roles in docstrings."""

import importlib.util
import io
import re
from pathlib import Path
from types import ModuleType

import pytest
from pages import REPOSITORY
from sphinx.application import Sphinx

import sb3_grpo

INDEX = """# Title

- [Not in the list](objectives.md)

## Begin

- [Start](start.md): first, see [results](results.md)
- [API](api/index.rst)

## No pages

Text.
"""


@pytest.fixture
def conf() -> ModuleType:
    """The configuration, as a module."""
    spec = importlib.util.spec_from_file_location("conf", REPOSITORY / "docs/conf.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_of_contents(conf: ModuleType) -> None:
    first, *others = re.findall(r"```{toctree}\n:caption: (.+)\n:hidden:\n\n([^`]*)\n```", conf.table_of_contents(INDEX))
    assert first == ("Begin", "start\napi/index")
    # every other page, so that none is lost
    [(caption, more)] = others
    pages = {page.stem for page in (REPOSITORY / "docs").glob("*.md")}
    assert (caption, set(more.split())) == ("More", pages - {"index", "start"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("| 9 [9, 10] | -0.5 [-1, 0.25] |", "| 9_[9,_10] | -0.5_[-1,_0.25] |"),
        ("columns [4, 8], x=2 [a, b], x[1, 2]", "columns [4, 8], x=2 [a, b], x[1, 2]"),
    ],
)
def test_intervals_stay_in_one_line(conf: ModuleType, text: str, expected: str) -> None:
    content = [text]
    conf.adapt_page(None, "page", content)
    assert content == [expected.replace("_", "\N{NO-BREAK SPACE}")]


@pytest.mark.parametrize("name", sb3_grpo.__all__)
def test_public_names_have_a_place(name: str) -> None:
    pages = [page.read_text() for page in (REPOSITORY / "docs/api").glob("*.rst") if page.stem != "index"]
    assert any(re.search(rf"\b{name}\b", page) for page in pages)


PAGE = """# Some words

[right](#some-words) [wrong](#other-words)

```{eval-rst}
.. py:class:: Known

:class:`Known` :class:`Unknown`
```
"""


# myst-parser uses what Sphinx is going to remove
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_wrong_links_are_warned_of(tmp_path: Path) -> None:
    (tmp_path / "index.md").write_text("# Title\n")
    (tmp_path / "page.md").write_text(PAGE)
    warnings = io.StringIO()
    build, docs = tmp_path / "build", REPOSITORY / "docs"
    nitpicky = {"nitpicky": True, "html_theme": "basic"}
    Sphinx(tmp_path, docs, build, build, "html", nitpicky, status=None, warning=warnings).build(force_all=True)
    found = warnings.getvalue()
    assert "'other-words'" in found
    assert "Unknown [ref.class]" in found
    assert "some-words" not in found
    assert ": Known" not in found
