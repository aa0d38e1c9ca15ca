"""The backend of an alias of `MAILERS`, or in words what is wrong with its entry."""

from __future__ import annotations

import inspect
import math
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import django
from anymail.backends.base import AnymailBaseBackend
from anymail.backends.base_requests import AnymailRequestsBackend
from django.core.mail.backends.base import BaseEmailBackend
from django.core.mail.backends.smtp import EmailBackend as DjangoSMTPBackend
from urllib3.util import Timeout

from ..compat import InvalidMailer, get_mailer, mailer_aliases, mailer_backend_path, mailer_class, mailer_options
from ..errors import did_you_mean
from .quiet import quietly

TEXTS = ("host", "username", "password", "api_url", "api_key", "server_token", "sender_domain")
"""Options of SMTP and of Anymail that are text; given as something else they fail late, as if a mail were at fault."""
NO_NETWORK = ("console", "locmem", "filebased", "dummy")
"""Backends of Django's by which mail leaves the process, and not the host."""
METHODS = ("send_messages", "open", "close")
MAILENGINES_SMTP = "mailengine.backends.smtp"
READ_SETTINGS_ONLY = ("django.core.mail.backends.base", "django.core.mail.backends.smtp", "mailengine.", "anymail.")
"""Modules whose constructors touch neither files nor networks."""


def build(alias: str) -> BaseEmailBackend:
    """A new backend object for this alias of `MAILERS`, not yet open.

    Raises InvalidMailer, or another ImproperlyConfigured of the backend's own, with words that name the mend and quote
    no option's value; what else its constructor raises comes as it is.
    """
    with quietly():
        _usable_class(alias)
        backend = get_mailer(alias)
    _check_kind(backend, alias)
    _check_timeout(backend, alias)
    return backend


def check(alias: str) -> None:
    """Raise what `build()` would, as far as that can be told without opening anything: see `READ_SETTINGS_ONLY`.

    Anybody else's constructor may make folders, read files or talk to a network, and a check runs before every command:
    of those only the names of their options are looked at.
    """
    with quietly():
        backend_class = _usable_class(alias)
    if inspect.isclass(backend_class) and _reads_settings_only(backend_class):
        build(alias)


def is_queue(alias: str) -> bool:
    """Whether this alias queues mail, and sends none; False where that can't be told."""
    try:
        return _is_queue(mailer_class(alias))
    except Exception:  # noqa: BLE001 (its module is anybody's code)
        return False


def has_network(alias: str) -> bool:
    """Whether this alias's mail can reach anybody; False where its entry can't be read."""
    try:
        path = mailer_backend_path(alias)
    except InvalidMailer:
        return False
    return not any(f".{name}." in path for name in NO_NETWORK)


def _usable_class(alias: str) -> Any:
    """What makes this alias's backends, if it may make a provider's with these options."""
    if alias not in mailer_aliases():
        text = f"MAILERS has no {alias!r}.{did_you_mean(alias, mailer_aliases())} Add it, or mend the spelling."
        raise InvalidMailer(text)
    backend_class, options = mailer_class(alias), mailer_options(alias)
    if inspect.isclass(backend_class) or not callable(backend_class):
        _check_kind(backend_class, alias)
    _check_names(backend_class, options, alias)
    if inspect.isclass(backend_class) and issubclass(backend_class, (DjangoSMTPBackend, AnymailBaseBackend)):
        _check_texts(options, alias)
    if inspect.isclass(backend_class) and issubclass(backend_class, DjangoSMTPBackend):
        _check_smtp(options, alias)
    return backend_class


def _is_queue(backend_class: object) -> bool:
    return getattr(backend_class, "is_queue", False) is True


def _check_kind(backend: object, alias: str) -> None:
    """Whether it, a class or an object, is a backend that sends; `BaseEmailBackend` itself does not."""
    if _is_queue(backend):
        text = "It is the queue itself, and mail would go in circles: let only MAILERS['default'] queue."
        raise InvalidMailer(text, alias=alias)
    cls = backend if inspect.isclass(backend) else type(backend)
    has_all = all(callable(getattr(backend, name, None)) for name in METHODS)
    if not has_all or getattr(cls, "send_messages", None) is BaseEmailBackend.send_messages:
        text = f"{mailer_backend_path(alias)} is not a backend: it has no {', '.join(METHODS[:-1])} or {METHODS[-1]}."
        raise InvalidMailer(text, alias=alias)


def _check_names(backend_class: Any, options: Mapping[str, Any], alias: str) -> None:
    """Django 6.1 says of its own backends which options they don't know; here it holds on older ones too."""
    try:
        signature = inspect.signature(backend_class)
    except (TypeError, ValueError):  # it is not written in Python
        return
    try:
        signature.bind(**options)
    except TypeError as error:  # it quotes names, no values
        raise InvalidMailer(f"Its constructor: {error}.", alias=alias) from None
    if getattr(backend_class.__init__, "__module__", "") in {MAILENGINES_SMTP, DjangoSMTPBackend.__module__}:
        known = {*inspect.signature(DjangoSMTPBackend.__init__).parameters} - {"self", "kwargs"}
        for name in options.keys() - {*known, "alias"}:
            raise InvalidMailer(f"There is no option {name!r}.{did_you_mean(name, known)}", alias=alias)
    if django.VERSION < (6, 1) and inspect.isclass(backend_class) and issubclass(backend_class, AnymailBaseBackend):
        type(backend_class.__name__, (backend_class, _Strict), {})(**options)


class _Strict(BaseEmailBackend):
    """At the end of a constructor's line, as Django 6.1's base class is: it is given what nobody knew."""

    def __init__(self, fail_silently: bool = False, **kwargs: Any) -> None:
        if kwargs.keys() - {"alias"}:
            raise InvalidMailer(f"Unknown options {', '.join(map(repr, kwargs))}.")
        super().__init__()


def _check_texts(options: Mapping[str, Any], alias: str) -> None:
    for name in TEXTS:
        if options.get(name) is not None and not isinstance(options[name], str):
            raise InvalidMailer(f"The option {name!r} is a {type(options[name]).__name__}: it is text.", alias=alias)


def _check_smtp(options: Mapping[str, Any], alias: str) -> None:
    host, port, timeout = (options.get(name) for name in ("host", "port", "timeout"))
    if host is not None and (not host or any(character <= " " or character == "\x7f" for character in host)):
        raise InvalidMailer("The option 'host' is no name or address of a host.", alias=alias)
    if options.get("use_tls") and options.get("use_ssl"):
        raise InvalidMailer("Of the options 'use_tls' and 'use_ssl', only one can be True.", alias=alias)
    if port is not None and not _is_port(port):
        raise InvalidMailer("The option 'port' is no number from 1 to 65535.", alias=alias)
    if timeout is not None and not _is_seconds(timeout):
        raise InvalidMailer("The option 'timeout' is no number of seconds.", alias=alias)


def _is_port(port: object) -> bool:
    if isinstance(port, str) and not (port.isascii() and port.isdecimal()):
        with suppress(OSError, UnicodeError, ValueError):
            return bool(socket.getservbyname(port))  # "submission", say
        return False
    return isinstance(port, (int, str)) and 0 <= int(port) <= 65535  # for 0 smtplib takes the usual one


def _is_seconds(timeout: object) -> bool:
    return isinstance(timeout, (int, float)) and math.isfinite(timeout) and timeout >= 0


def _check_timeout(backend: BaseEmailBackend, alias: str) -> None:
    """What requests would say of the timeout of Anymail's backends, if only in the middle of a handover."""
    timeout = getattr(backend, "timeout", None)
    if not isinstance(backend, AnymailRequestsBackend) or timeout is None or isinstance(timeout, Timeout):
        return
    try:
        if isinstance(timeout, tuple):
            connect, read = timeout
            Timeout(connect=connect, read=read)
        else:
            Timeout(connect=timeout, read=timeout)
    except (TypeError, ValueError):
        text = "The option 'timeout' (of Anymail: REQUESTS_TIMEOUT) is no number of seconds above 0."
        raise InvalidMailer(text, alias=alias) from None


def _reads_settings_only(backend_class: type) -> bool:
    makers = [cls for cls in backend_class.__mro__ if cls is not object and {"__init__", "__new__"} & vars(cls).keys()]
    return all(f"{cls.__module__}.".startswith(READ_SETTINGS_ONLY) for cls in makers)
