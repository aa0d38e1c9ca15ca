"""The admin on this machine, for a visitor to look around and press the button."""

from __future__ import annotations

from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIServer

from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.management.base import OutputWrapper
from django.core.servers.basehttp import WSGIRequestHandler, get_internal_wsgi_application

from .cron import Cron
from .newsroom import Newsroom

PORT = 8000


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


def serve_admin(newsroom: Newsroom, *, out: OutputWrapper) -> None:
    """Serve the project on 127.0.0.1 and keep its mail moving, until Ctrl-C."""
    with listening() as server, Cron(out.write):
        server.set_app(StaticFilesHandler(get_internal_wsgi_application()))
        out.write(f"\nThe admin is at http://127.0.0.1:{server.server_port}/admin/ until Ctrl-C.")
        out.write(f"Log in as editor or admin with the password {newsroom.password}")
        out.write("Tick an issue (as admin also an article), choose “Send email update”, and follow the job.")
        out.flush()
        try:
            server.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            out.write("\nBye.")


def listening() -> Server:
    """A server on the usual port, or on a free one where that is taken."""
    try:
        return Server(("127.0.0.1", PORT), WSGIRequestHandler)
    except OSError:
        return Server(("127.0.0.1", 0), WSGIRequestHandler)
