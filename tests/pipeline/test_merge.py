"""Merge fields: what an editor may write, and what it becomes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailengine.errors import InvalidMail
from mailengine.pipeline.merge import compile_template, render_header


@pytest.mark.parametrize(
    ("text", "data", "rendered"),
    [
        ("Hello {{ name }}!", {"name": "Ann"}, "Hello Ann!"),
        ("Hello {{name}}!", {"name": "Ann"}, "Hello Ann!"),
        ("Hello {{ name }}!", {}, "Hello !"),
        ('Hello {{ name|default:"reader" }}!', {}, "Hello reader!"),
        ("Hello {{ name|default:'dear reader' }}!", {"name": None}, "Hello dear reader!"),
        ('Hello {{ name | default : "reader" }}!', {"name": ""}, "Hello reader!"),
        ('{{ a|default:"{{" }}{{ b }}', {"b": "}}"}, "{{}}"),
        ("{{ count }} of {{ total }}", {"count": 0, "total": 3}, "0 of 3"),
        ("{{ plan.name }}", {"plan": {"name": "Gold"}}, "Gold"),
        ('{{ plan.name|default:"none" }}', {"plan": "Gold"}, "none"),
        ("{{ vorname_größe }}", {"vorname_größe": "XL"}, "XL"),
        ("{{ name }}", {"name": "{{ other }}", "other": "x"}, "{{ other }}"),
        ("50 } { % {% if x %} {# no #} }}", {}, "50 } { % {% if x %} {# no #} }}"),
        ("", {}, ""),
    ],
)
def test_fields_are_filled_in(text, data, rendered):
    """C04: variables and `default`, nothing more; values are never read for fields again."""
    assert compile_template(text).render(data, html=False) == rendered


def test_values_are_escaped_in_html_and_the_authors_words_are_not():
    """ST3: what a recipient typed as a name can't become markup."""
    words = compile_template('<p title="{{ name }}">{{ name }}{{ sign|default:"&amp;" }}</p>')
    rendered = words.render({"name": '<b>"O\'Neil"</b>'}, html=True)
    safe = "&lt;b&gt;&quot;O&#x27;Neil&quot;&lt;/b&gt;"
    assert rendered == f'<p title="{safe}">{safe}&amp;</p>'


@pytest.mark.parametrize(
    "wrong",
    [
        "{{ name|upper }}",
        "{{ name|default:name }}",
        '{{ name|default:"a"|upper }}',
        "{{ user.delete() }}",
        "{{ user._meta[0] }}",
        "{{ first name }}",
        "{{ name }",
        "{{ }}",
        "{{",
    ],
)
def test_anything_else_is_refused_with_its_line_and_the_mend(wrong):
    """ST1: editors' words run no code; a mistake is found before it is in everybody's mail."""
    with pytest.raises(InvalidMail, match=r"Line 3: .*Write \{\{ name \}\}") as refusal:
        compile_template(f"Hello,\n\nsee {wrong}\nBye {{{{ name }}}}")
    assert repr(wrong)[:-1] in str(refusal.value)


def test_attributes_of_objects_are_out_of_reach():
    """ST1: dotted names walk dicts, never objects."""
    assert compile_template("{{ name.upper }}{{ name.__class__ }}").render({"name": "Ann"}, html=False) == ""


def test_a_text_knows_what_it_asks_for():
    assert compile_template("{{ a }}{{ b.c }}{{ a|default:'x' }}").fields == {"a", "b.c"}


@pytest.mark.parametrize("bad", ["\r", "\n", "\0", "\x7f", "\x85", "\u2028", "\u2029", "\ud800"])
def test_no_value_can_end_its_header(bad):
    """ST3, F-X10: the field is named; its value, which may be private, is not shown."""
    with pytest.raises(InvalidMail, match=r"\{\{ name \}\} brings a line break") as refusal:
        render_header(compile_template("News for {{ name }}"), {"name": f"Ann{bad}Bcc: x@example.org"})
    assert "Ann" not in str(refusal.value)


def test_a_header_is_not_escaped():
    assert render_header(compile_template("{{ a }} & co"), {"a": "<Tom>"}) == "<Tom> & co"


@given(st.text().filter(lambda text: "{{" not in text))
def test_words_without_fields_stay_as_they_are(text):
    words = compile_template(text)
    assert words.render({}, html=True) == text
    assert words.fields == frozenset()
