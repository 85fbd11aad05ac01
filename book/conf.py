"""How Sphinx builds the book: ``make book``. Nothing is executed, and no page asks another host for anything.

The source directory is the repository, so that one relative link between chapters and the pages of ``book/`` works in
JupyterLab, on GitHub and in the built site.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import fastapi  # noqa: F401  - before autodoc, which pretends to check types while it imports; pydantic cannot bear that

if TYPE_CHECKING:
    from sphinx.application import Sphinx

BOOK = Path(__file__).resolve().parent
ROOT = BOOK.parent
sys.path.insert(0, str(BOOK / "_ext"))

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project = "PagedAttention, from first principles"
author = "the authors"
copyright = f"{author}. Text and figures: CC BY 4.0; code: Apache-2.0"
language = "en"

root_doc = "book/index"
include_patterns = ["book/**", "chapters/**"]
exclude_patterns = [".*", "build", "dist", "pagedattn_lab", "tests", "tools", "**/.ipynb_checkpoints", "*.egg-info"]
templates_path = ["_templates"]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinxcontrib.bibtex",
    "api_page",
    "folded_cells",
    "glossary_index",
    "guess_boxes",
    "inline_svg",
    "layout_page",
    "map_page",
]

# Notebooks and Markdown
nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # the default scripts lie on other hosts
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]  # needs a kernel
nb_render_markdown_format = "myst"  # tables in outputs
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
myst_enable_extensions = ["amsmath", "dollarmath", "substitution"]
myst_heading_anchors = 3

# The library's docstrings
# What a package exports is documented where it is defined, once.
autodoc_default_options = {"members": True, "show-inheritance": True, "ignore-module-all": True}
autodoc_preserve_defaults = True  # a default stands as it is written, not as what it is
add_module_names = False
toc_object_entries = False  # a page's contents list its modules only
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_mock_imports = [] if importlib.util.find_spec("triton") else ["triton"]  # published for Linux only
napoleon_numpy_docstring = False
nitpicky = True
# Other projects' names have no page here, and asking their sites for addresses needs a network.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(abc|annotated_types|anywidget|argparse|asyncio|collections|concurrent|contextlib|enum|fastapi|httpx|io|ipywidgets|matplotlib|mmap|np|numba|numpy|os|pathlib|pydantic|random|socket|starlette|subprocess|t|time|torch|traitlets|transformers|triton|types|uvicorn)\..*",
    ),
    # Annotations that say how a value is read, or which words there are.
    (r"py:class", r"pagedattn_lab\.engine\.protocol\._(parts|prompts|texts)"),
    (r"py:obj", r"typing\.Literal\['stop'"),
]

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"

# Mathematics: one local file. Its menu would fetch fonts and speech rules from another host.
mathjax_path = "mathjax/tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}}

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["book.css"]
html_js_files = [
    "memory.js",
    "reading.js",
    ("accessible.js", {"defer": "defer"}),
    ("glossary_terms.js", {"defer": "defer"}),
    ("glossary_card.js", {"defer": "defer"}),
]
html_search_scorer = str(BOOK / "_ext" / "search_scorer.js")
html_show_sourcelink = False
html_sourcelink_suffix = ""
html_additional_pages = {"index": "redirect.html"}  # the site's root leads to the front page
html_context = {"default_mode": "auto"}  # else the theme's script reports an invalid mode on every first visit
html_theme_options = {
    "repository_url": PROJECT["urls"]["Repository"],
    "repository_branch": "main",
    "path_to_docs": "",
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    "use_repository_button": True,
    "use_download_button": True,
    "use_edit_page_button": False,
    "use_issues_button": False,
    "home_page_in_toc": True,
    "footer_content_items": ["copyright.html"],
    "navbar_persistent": [],  # one search box is enough
}


def execution_table(path: Path) -> str:
    """Render what ``tools/notebooks.py --refresh-timings`` recorded as a Markdown table."""
    chapters = json.loads(path.read_text())
    packages = sorted({name for record in chapters.values() for name in record["packages"]})
    rows = [["chapter", "seconds", "cores", "Python", *packages]]
    rows.append(["---", "--:", "--:", *("---" for _ in range(len(packages) + 1))])
    for name, record in chapters.items():
        versions = [record["packages"].get(package, "–") for package in packages]
        link = f"[{name[:2]}](../chapters/{name}.ipynb)"
        rows.append([link, f"{record['seconds']:.0f}", str(record["cores"]), record["python"], *versions])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def check_tables(path: Path) -> str:
    """Render what ``tests/record_vllm_check.py`` kept of real servers: a Markdown table for each workload."""
    from pagedattn_lab.vllm_check.report import comparison

    parts = []
    for report in json.loads(path.read_text()).values():
        sent, limits = report["workload"], report["limits"]
        parts += [
            f"**{sent['name']}, {sent['num_requests']} requests, {sent['clients']} at once.** "
            f"vLLM {report['version']}, blocks of {report['block_size']}, at most {report['max_model_len']:,} tokens "
            f"a request, {limits['max_num_seqs']} requests and {limits['max_num_batched_tokens']:,} tokens in a step; "
            f"outputs of at most {sent['most_output']} tokens.",
            "",
            "| | predicted | observed | difference |\n|---|--:|--:|--:|",
            *("| " + " | ".join(row) + " |" for row in comparison(report["predicted"], report["observed"])),
            "",
        ]
    return "\n".join(parts)


myst_substitutions = {
    "execution_times": execution_table(BOOK / "execution.json"),
    "vllm_checks": check_tables(BOOK / "vllm_check.json"),
}


SHEETS = ("player.css", "pictures.css")  # the package's own


def write_scripts(app: Sphinx) -> None:
    """Put into ``_static`` what is made or copied at build time: MathJax, and the player as a classic script."""
    from pagedattn_lab.viz.book import book_script

    static = Path(app.outdir) / "_static"
    (static / "mathjax").mkdir(parents=True, exist_ok=True)
    (package,) = importlib.util.find_spec("sphinx-mathjax-offline").submodule_search_locations
    shutil.copy(Path(package) / "static" / "mathjax" / "tex-svg.js", static / "mathjax")
    (static / "player.book.js").write_text(book_script(), encoding="utf-8")
    for name in SHEETS:
        shutil.copy(ROOT / "pagedattn_lab" / "viz" / name, static)


# Scripts, and sheets, that a single page needs, in their order.
OF_ONE_PAGE = {
    "search": ["search_excerpts.js"],
    "book/index": ["play.css", "front_page.js"],
    "book/sandbox": ["play.css", "sandbox_state.js", "sandbox.js"],
}


def add_own_files(app: Sphinx, pagename: str, *_: object) -> None:
    """Let a page load what it alone needs."""
    for name in OF_ONE_PAGE.get(pagename, []):
        if name.endswith(".css"):
            app.add_css_file(name)
        else:
            app.add_js_file(name, defer="defer")


def setup(app: Sphinx) -> None:
    """Register what every page loads."""
    app.connect("builder-inited", write_scripts)
    app.connect("html-page-context", add_own_files)
    for name in SHEETS:
        app.add_css_file(name)
    app.add_js_file("player.book.js", defer="defer")
