"""A readable text part for mail that came with HTML only.

Not by html.parser: on broken HTML the versions we support raise at times, differ, and take quadratic time.
"""

from __future__ import annotations

import re
from html import unescape

# fmt: off
PARAGRAPHS = frozenset({
    "address", "blockquote", "dl", "fieldset", "figure", "form", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "ol", "p",
    "pre", "table", "ul",
})
LINES = frozenset({
    "article", "aside", "body", "caption", "center", "dd", "div", "dt", "figcaption", "footer", "header", "html", "li",
    "main", "nav", "section", "tr",
})
# fmt: on
UNSEEN = frozenset({"head", "template", "title"})
DEEPEST_INDENT = 4

COMMENT = re.compile(r"<!--.*?(?:-->|\Z)|<[!?][^>]*(?:>|\Z)", re.DOTALL)
CODE = re.compile(r"<(script|style)\b.*?(?:</\1\s*>|\Z)", re.DOTALL | re.IGNORECASE)
TAG_BEGIN = re.compile(r"<(?P<slash>/?)(?P<name>[a-zA-Z][^\s/>]*)")
TAG_STEP = re.compile(r"""> | = \s* (?: "[^"]*" | '[^']*' )""", re.VERBOSE)
ATTRIBUTE = re.compile(r"""([^\s=/>]+) (?: \s* = \s* (?: "([^"]*)" | '([^']*)' | ([^\s>]*) ) )?""", re.VERBOSE)
HUGE_NUMBER = re.compile(r"&#\d{8,};?")  # no character has it, and unescape() raises for thousands of digits


def text_from_html(html: str) -> str:
    """The words of an HTML document as plain text, without a last newline.

    Paragraphs stand apart by an empty line, items begin with "- ", a link keeps its target as `text (url)`, an image
    its alt, a table goes row by row. Lines are not wrapped. Broken HTML gives what can be read of it, never an error;
    the time is linear in its length.
    """
    reader = _Reader()
    reader.read(CODE.sub("", COMMENT.sub("", html)))
    return "".join(reader.written)


class _Reader:
    """Writes down words, and before each of them the breaks that have come due."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.breaks_due = 0  # 1 ends the line, 2 leaves one empty
        self.space_due = False
        self.bullet_due = False
        self.list_depth = 0
        self.unseen_depth = 0
        self.link_target = ""
        self.link_began = 0  # where in `written` the words of the open link begin

    def read(self, html: str) -> None:
        position = 0
        while tag := TAG_BEGIN.search(html, position):
            end = _end_of_tag(html, tag.end())
            if end < 0:
                break
            self.words(html[position : tag.start()])
            if tag["slash"]:
                self.end(tag["name"].lower())
            else:
                self.begin(tag["name"].lower(), html[tag.end() : end])
            position = end
        self.words(html[position:])
        self.end_link()

    def begin(self, tag: str, attributes: str) -> None:
        self.block(tag)
        if tag == "body":
            self.unseen_depth = 0  # a head that was never closed must not swallow the mail
        elif tag in UNSEEN:
            self.unseen_depth += 1
        elif tag in ("ul", "ol"):
            self.list_depth += 1
        elif tag == "li":
            self.bullet_due = True
        elif tag == "br":
            self.breaks_due = min(self.breaks_due + 1, 2)
        elif tag in ("td", "th"):
            self.space_due = True
        elif tag == "img":
            self.words(f" {_attribute('alt', attributes)} ")
        elif tag == "a":
            self.end_link()
            self.link_target = _decode(_attribute("href", attributes)).strip()
            self.link_began = len(self.written)

    def end(self, tag: str) -> None:
        if tag in UNSEEN:
            self.unseen_depth = 0 if tag == "head" else max(0, self.unseen_depth - 1)
        elif tag in ("ul", "ol"):
            self.list_depth = max(0, self.list_depth - 1)
        elif tag == "li":
            self.bullet_due = False
        elif tag == "a":
            self.end_link()
        self.block(tag)

    def words(self, data: str) -> None:
        if self.unseen_depth or not data:
            return
        data = _decode(data)
        words = " ".join(data.split())
        self.space_due = self.space_due or data[:1].isspace()
        if words:
            self.write(words)
            self.space_due = data[-1:].isspace()

    def block(self, tag: str) -> None:
        if tag in ("ul", "ol") and self.list_depth:
            self.breaks_due = max(self.breaks_due, 1)  # a list within a list belongs to its item
        elif tag in PARAGRAPHS:
            self.breaks_due = 2
        elif tag in LINES:
            self.breaks_due = max(self.breaks_due, 1)

    def write(self, words: str) -> None:
        if self.written:
            self.written.append("\n" * self.breaks_due or " " * self.space_due)
        if self.bullet_due:
            self.written.append("  " * min(self.list_depth - 1, DEEPEST_INDENT) + "- ")
        self.written.append(words)
        self.breaks_due = 0
        self.bullet_due = False

    def end_link(self) -> None:
        target, self.link_target = self.link_target, ""
        if not target or target.startswith("#") or self.unseen_depth:
            return
        words = "".join(self.written[self.link_began :]).strip()
        if not words:
            self.write(target)
        elif _bare(words) != _bare(target):
            self.written.append(f" ({target})")


def _end_of_tag(html: str, position: int) -> int:
    """Where the tag is over, or -1; a ">" in a quoted value doesn't end it, one after a quote never closed does."""
    while step := TAG_STEP.search(html, position):
        if step[0] == ">":
            return step.end()
        position = step.end()
    return -1


def _attribute(name: str, attributes: str) -> str:
    for found in ATTRIBUTE.finditer(attributes):
        if found[1].lower() == name:
            return found[2] or found[3] or found[4] or ""
    return ""


def _decode(text: str) -> str:
    return unescape(HUGE_NUMBER.sub("\ufffd", text))


def _bare(url: str) -> str:
    return re.sub(r"^(https?://|mailto:|tel:)", "", url.lower()).rstrip("/")
