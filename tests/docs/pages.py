"""The documentation as data: its pages, their links, their code."""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A piece of code on a page, with the paragraph before it."""

    language: str
    code: str
    introduction: str


def pages():
    """README, CHANGELOG and everything under docs."""
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page):
    text = page.read_text()
    found = []
    for fence in _FENCE.finditer(text):
        before = text[: fence.start()].rstrip().rpartition("\n\n")[2]
        code = textwrap.dedent(fence["code"])
        found.append(Block(fence["language"], code, " ".join(before.split())))
    return found


def prose(page):
    """The page without its code."""
    return _FENCE.sub("", page.read_text())


def anchors(page):
    """What a link can end in after its `#`, made from the headings as GitHub does."""
    headings = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in _HEADING.findall(prose(page))]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def section(page, heading):
    """The text under a heading, up to the next one of its kind."""
    level, _, _ = heading.partition(" ")
    text = page.read_text().split(f"\n{heading}\n", 1)[1]
    return re.split(rf"^{level} ", text, maxsplit=1, flags=re.MULTILINE)[0]


def table(text):
    """The rows of the first table in `text`, each a list of cells, without its head."""
    lines = re.search(r"(^\|.*\n)+", text, re.MULTILINE)[0].splitlines()
    cells = [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return cells[2:]
