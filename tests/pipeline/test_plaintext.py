"""The text part that is made of a mail's HTML."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailengine.pipeline.plaintext import text_from_html


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>One <b>bold</b>\n  word</p><p>Two</p>", "One bold word\n\nTwo"),
        ("<h1>News</h1>Hello<br>Ann<br><br>Bye<br/>", "News\n\nHello\nAnn\n\nBye"),
        ("<div>a</div><div><div>b</div></div>", "a\nb"),
        ("a&nbsp;&amp;&lt;b&gt; &euro;&#8364;", "a &<b> €€"),
        ("<ul><li>one</li><li>two<ol><li>deep</li></ol></li></ul><p>end", "- one\n- two\n  - deep\n\nend"),
        ("<ul><li><p>one</p></li><li></li></ul>end", "- one\n\nend"),
        ("<table><tr><th>A</th><th>B</th></tr><tr><td>1</td><td>2</td></tr></table>", "A B\n1 2"),
        ('See <a href="https://x.org/a?b=1&amp;c=2">the page</a>.', "See the page (https://x.org/a?b=1&c=2)."),
        ("<a href='https://x.org/'>x.org</a> <a href=mailto:a@x.org>a@x.org</a>", "x.org a@x.org"),
        ('<a href="{{ link }}">Leave</a> <a href="#top">up</a> <a name=x>here</a>', "Leave ({{ link }}) up here"),
        ('<a href="https://x.org"><img src="a.png"></a>', "https://x.org"),
        ('<a href="https://x.org">open', "open (https://x.org)"),
        ('<img src="a.png" alt="Our logo">Hello<img src="b.png" alt="">', "Our logo Hello"),
        ("<head><title>T</title><style>p{}</style></head><body>x<script>a<b</script>y</body>", "xy"),
        ("<head><title>T<body>seen", "seen"),
        ("<!DOCTYPE html><!-- no --><?xml no?>a<!--[if mso]>no<![endif]--><!--[if !mso]><!-->b<!--<![endif]-->", "ab"),
        ("<SCRIPT>no</SCRIPT><P>yes</P>", "yes"),
        ('<img alt="a < b > c"> 1 < 2 > 1', "a < b > c 1 < 2 > 1"),
        ("just words", "just words"),
        ("", ""),
    ],
)
def test_html_becomes_readable_text(html, text):
    """C08: whoever reads mail as text gets every word and every link."""
    assert text_from_html(html) == text


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>a</div></ul></li></a></head><p>b", "a\n\nb"),
        ("<p title=don't>a</p>", "a"),
        ('<p title="open>a</p>', "a"),
        ("a <b", "a <b"),
        ("a <!-- never closed <p>b", "a"),
        ("<![nonsense]>a", "a"),
        (f"&#{'9' * 5000};a", "\ufffda"),
    ],
)
def test_broken_html_gives_what_can_be_read(html, text):
    assert text_from_html(html) == text


@given(st.lists(st.sampled_from(["<", ">", "/", "a", "!", "--", '="', "'", " ", "&#", ";", "<p>", "<li>", "é"])))
def test_no_html_raises_or_leaves_two_empty_lines(pieces):
    assert "\n\n\n" not in text_from_html("".join(pieces))


HOSTILE = ["<", "</", "<a ", '<a x="', '>"<a x="', "<!--", "<script>", "</script", "&", "<ul><li>x", "<a href=x>"]


@pytest.mark.parametrize("hostile", [*HOSTILE, "<b x='\"", "<a x"])
def test_the_time_is_linear_in_hostile_html(hostile):
    """Ten times the text takes about ten times as long; a quadratic reader would take a hundred times."""
    short, long = (_seconds_to_read(hostile * (size // len(hostile))) for size in (20_000, 200_000))
    assert long < 40 * short + 0.1


def _seconds_to_read(html: str) -> float:
    began = time.process_time()
    text_from_html(html)
    return time.process_time() - began
