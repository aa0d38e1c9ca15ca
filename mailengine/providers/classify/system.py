"""Errors of the network, of the system, and of whatever else a backend is made of."""

from __future__ import annotations

import errno
import json
import re
import socket
import ssl
from dataclasses import replace
from traceback import walk_tb

from ...backends.dialogue import Phase, phase_of
from ...outcomes import Outcome
from .errors import OUR_HOST, causes_of, is_of, number_in, text_of, was_in
from .kinds import (
    LOCAL,
    MISCONFIGURED,
    NAME_UNKNOWN,
    NO_HANDSHAKE,
    REFUSED,
    UNAVAILABLE,
    UNCERTAIN,
    UNCLASSIFIED,
    caused,
    named,
)
from .smtp import CUT_OFF

NETWORK: tuple[tuple[str, Outcome], ...] = (
    # One of these classes (of requests, urllib3, botocore, ssl, the stdlib) among the error and its causes   is
    ("SSLCertVerificationError|CertificateError", MISCONFIGURED),
    ("InvalidURL|MissingSchema|InvalidSchema|InvalidHeader|InvalidProxyURL|TooManyRedirects", MISCONFIGURED),
    (
        "NoCredentialsError|PartialCredentialsError|CredentialRetrievalError|NoRegionError|ProfileNotFound",
        MISCONFIGURED,
    ),
    ("gaierror|NameResolutionError|NewConnectionError", UNAVAILABLE),
    ("ConnectTimeout|ConnectTimeoutError|EndpointConnectionError", UNAVAILABLE),
    ("ProxyError|ProxyConnectionError|ConnectionRefusedError", UNAVAILABLE),
    ("ParamValidationError", REFUSED),
)
"""What can only happen before a request is sent. A read timeout is not here: the request may have arrived."""
NO_FILE_FOR_TLS = re.compile("Could not find .*(certificate|key)")
"""What requests says of the options `verify` and `cert`, in an OSError like any other."""
BEFORE_A_REQUEST = re.compile("prepare_(auth|cookies|headers|method|url)|put(header|request)|_new_conn|getaddrinfo")
"""Functions of requests, urllib3, http.client and socket that write the request's own lines, or find the host."""
WRITING = {
    *(("django.core.mail.message", name) for name in ("message", "sanitize_address", "forbid_multi_line_headers")),
    *((f"{module}.message", name) for module in ("django.core.mail", "email") for name in ("as_bytes", "as_string")),
    ("django.core.mail.backends.smtp", "prep_address"),
    ("smtplib", "putcmd"),
}
"""Where Django's SMTP backend, and whoever does as it does, has sent nothing of a mail yet."""
OUR_HOST_AT_ANY_TIME = frozenset({errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN})
"""Of these, what may also be said of a connection that has been in use for a while."""
OUR_FILES = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES})
UNREACHED = frozenset({errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN})


def of_network_error(error: BaseException, *, opening: bool) -> Outcome:
    """By what went wrong on the way: the error and all its causes are looked at."""
    chain = list(causes_of(error))
    deepest = chain[-1]
    phase = phase_of(error)
    if phase in {Phase.AWAIT, Phase.DONE}:
        return caused(CUT_OFF[phase], error)
    names = {cls.__name__ for each in chain for cls in type(each).__mro__}
    number = number_in(chain)
    was_connecting = opening or phase is not None or "NewConnectionError" in names
    if number in OUR_HOST and (was_connecting or number not in OUR_HOST_AT_ANY_TIME):
        return caused(LOCAL, deepest)
    if any(_is_handshake(each) for each in chain):
        return caused(NO_HANDSHAKE, deepest)
    if "gaierror" in names and number != socket.EAI_AGAIN:
        return caused(NAME_UNKNOWN, deepest)
    if any(isinstance(each, ValueError) and was_in(each, BEFORE_A_REQUEST) for each in chain):
        return caused(MISCONFIGURED, deepest)  # botocore hides them in errors of its own
    for pattern, outcome in NETWORK:
        if names.intersection(pattern.split("|")):
            return caused(outcome, deepest)
    if opening and phase is None and (number in OUR_FILES or isinstance(deepest, ssl.SSLError)):
        return caused(MISCONFIGURED, deepest)  # a certificate or key of our own can't be read
    if not opening and isinstance(deepest, OSError) and deepest.filename is not None:
        return caused(UNCLASSIFIED, deepest)  # an attachment, or a file of the project's: a network gives no such names
    if NO_FILE_FOR_TLS.match(text_of(error)):
        return named(MISCONFIGURED, error)
    if opening or phase is not None:
        return caused(CUT_OFF[phase or Phase.CONNECT], deepest)
    if number in UNREACHED:
        return caused(UNAVAILABLE, deepest)
    return caused(UNCERTAIN, deepest)


def of_silent_backend(error: BaseException, *, answered: bool) -> Outcome:
    """What nobody knows when it happened: it may be what went wrong after the mail had gone, at a log or a cache.

    Two things are known for what they are: mail that can't be written, and a connection that was never made. The
    latter might be one to something else, after the mail had gone; but nearly always it is a provider that is down.
    """
    if not answered and _is_of_content(error) and _was_in_writing(error):
        return named(REFUSED, error)
    if isinstance(error, OSError) or is_of(error, "BotoCoreError"):
        chain = list(causes_of(error))
        unreached = number_in(chain) in UNREACHED or any(is_of(each, "gaierror") for each in chain)
        return caused(UNAVAILABLE if unreached and not answered else UNCERTAIN, chain[-1])
    return named(UNCERTAIN, error)


def of_other_error(error: BaseException, *, opening: bool) -> Outcome:
    phase = phase_of(error)
    if opening:
        if isinstance(error, MemoryError):
            return replace(LOCAL, code=type(error).__name__)
        # An option of the wrong type, a password that is not ASCII. Its text may quote the option.
        return replace(MISCONFIGURED, code=type(error).__name__)
    if phase in {Phase.AWAIT, Phase.DONE}:
        return named(CUT_OFF[phase], error)
    if was_in(error, "post_to_esp") and was_in(error, "request|_make_api_call"):
        return _of_error_in_a_call(error)
    if _is_of_content(error):
        return named(REFUSED, error)  # mail that can't be written
    if was_in(error, "post_to_esp"):  # in Anymail's method of that name boto3 reads the answer, too
        return named(UNCERTAIN, error)
    return named(UNCLASSIFIED, error)


def _of_error_in_a_call(error: BaseException) -> Outcome:
    """By where a library for HTTP stumbled. Its text may quote what it stumbled over: a key, a password."""
    if isinstance(error, ValueError) and was_in(error, BEFORE_A_REQUEST):
        outcome = MISCONFIGURED  # a key that was pasted with a character too many, a host that can't be one
    elif was_in(error, "get_redirect_target"):
        outcome = MISCONFIGURED  # as any 3xx
    elif isinstance(error, ValueError) and was_in(error, "prepare_body"):
        outcome = REFUSED
    else:
        outcome = UNCERTAIN
    return replace(outcome, code=type(error).__name__)


def _is_handshake(error: BaseException) -> bool:
    """Whether a TLS handshake failed, for another reason than the server's certificate.

    ssl raises the same errors when a connection in use breaks; only where it did so tells them apart.
    """
    if not isinstance(error, ssl.SSLError) or isinstance(error, ssl.SSLCertVerificationError):
        return False
    return was_in(error, "do_handshake")


def _is_of_content(error: BaseException) -> bool:
    """Whether it may tell of a bad header, address, character or charset."""
    return type(error) is LookupError or (isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError))


def _was_in_writing(error: BaseException) -> bool:
    """Whether Django, or smtplib before it sent a command, raised it over a mail."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return any((frame.f_globals.get("__name__"), frame.f_code.co_name) in WRITING for frame in frames)
