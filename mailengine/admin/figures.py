"""Numbers as people read them."""

from __future__ import annotations

from django.utils.formats import number_format
from django.utils.translation import gettext, ngettext

from ..pipeline.audience import Size


def grouped(number: int) -> str:
    """4812 as the reader's language writes it: 4,812."""
    return number_format(number, force_grouping=True)


def recipients_in_words(size: Size) -> str:
    """The words "4,812 recipients", or "at least 10,000 recipients" where counting stopped early."""
    words = ngettext("%(count)s recipient", "%(count)s recipients", size.number) % {"count": grouped(size.number)}
    return gettext("at least %(recipients)s") % {"recipients": words} if size.at_least else words
