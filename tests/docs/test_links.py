"""The pages hang together: links lead somewhere, and each page can be found."""

import ast
import re

import pytest

from tests.docs.pages import DOCS, anchors, blocks, name_of, pages, prose

LINK = re.compile(r"\]\(([^)\s]+)\)")


def links(page):
    """The targets of a page's relative links, each as (path, anchor); code is no place for links."""
    found = LINK.findall(re.sub(r"`[^`\n]*`", "", prose(page)))
    targets = [target.partition("#") for target in found if not re.match(r"[a-z]+:", target)]
    return [(page if not path else (page.parent / path).resolve(), anchor) for path, _, anchor in targets]


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_links_lead_somewhere(page):
    broken = [
        f"{target}#{anchor}"
        for target, anchor in links(page)
        if not target.exists() or (anchor and anchor not in anchors(target))
    ]

    assert broken == []


def test_the_map_leads_to_every_page():
    listed = {target for target, _ in links(DOCS / "index.md")}

    assert {page for page in DOCS.rglob("*.md") if page.name != "index.md"} - listed == set()


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_python_on_the_pages_compiles(page):
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.code, filename=name_of(page))
