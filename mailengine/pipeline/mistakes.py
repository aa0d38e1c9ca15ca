"""All that is wrong with a mail at once, by the argument of `queue_mail()` that is wrong: for forms and programs.

`queue_mail()` itself raises for the first mistake. Who shows mistakes to a person asks here, after that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from django.core.mail import EmailMessage
from django.template import TemplateSyntaxError

from ..errors import MailengineError
from ..headers import header_text
from .audience import find_audience
from .checked import checked_address, checked_headers, checked_json, checked_mapping, checked_text, listed
from .draft import checked_sender, rendered
from .enqueue import attach, check_merge_fields, terms_of
from .extras import checked_extras
from .files import file_of


def mistakes_in(arguments: Mapping[str, Any]) -> dict[str, str]:
    """A sentence for each wrong one of these arguments of `queue_mail()` or `queue_job()`, by its name.

    In a list it is named by its place, as `cc.0`; a header by its own name, as `headers.X-Shop`. `to` is another name
    of `recipient_list`, and `audience` that of an audience. What is left out is not judged; nor is what takes the
    database to know.
    """
    found: dict[str, str] = {}
    for name, check in _checks(arguments):
        try:
            check()
        except (MailengineError, TemplateSyntaxError) as error:
            found.setdefault(name, str(error))
    return found


def _checks(given: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], object]]]:
    """What may be wrong, and how to find out."""
    for name, check in _OF_ONE.items():
        if given.get(name) is not None:
            yield name, partial(check, given[name])
    for name, check_item in _OF_MANY.items():
        yield name, partial(listed, name, given.get(name))
        for place, item in enumerate(_items(given.get(name))):
            yield f"{name}.{place}", partial(check_item, name, item)
    headers = given.get("headers")
    yield "headers", partial(checked_mapping, "headers", headers)
    for name, value in headers.items() if isinstance(headers, Mapping) else ():
        yield f"headers.{name}", partial(checked_headers, {name: value})
    if given.get("template") is not None:
        yield "template", partial(rendered, given["template"], given.get("context"), subject="", text="", html=None)
    for name in ("subject", "message", "html_message") if given.get("merge_data") is not None else ():
        yield name, partial(check_merge_fields, str(given.get(name) or ""))
    for name in ("priority", "send_at", "expires_at"):
        terms = {"priority": None, "send_at": None, "expires_at": None, name: given.get(name)}
        yield name, partial(terms_of, "transactional", **terms)


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _attachment(name: str, item: Any) -> None:
    email = EmailMessage()
    attach(email, 1, item)
    file_of(email.attachments[0])


_OF_ONE: Mapping[str, Callable[[Any], object]] = {
    "subject": lambda value: header_text("the subject", value),
    "message": lambda value: checked_text("the text", value),
    "html_message": lambda value: checked_text("the HTML", value),
    "from_email": checked_sender,
    "stream": lambda value: terms_of(value, None, None, None),
    "metadata": lambda value: checked_extras({"metadata": checked_json("metadata", value)}),
    "tags": lambda value: checked_extras({"tags": checked_json("tags", listed("tags", value))}),
    "context": lambda value: checked_mapping("context", value),
    "audience": find_audience,
}

_OF_MANY: Mapping[str, Callable[[str, Any], object]] = {
    **dict.fromkeys(("recipient_list", "to", "cc", "bcc", "reply_to"), checked_address),
    "attachments": _attachment,
}
