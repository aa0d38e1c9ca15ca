"""A server on raw sockets that misbehaves at any step of a dialogue: `ScriptedServer`, `ScriptedHTTPServer`."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping

GIVE_UP_SECONDS = 15
"""No misbehaviour goes on for longer: a client without a deadline fails its test then, and doesn't hang it."""


class Peer:
    """One connection, from the server's side."""

    def __init__(self, server, sock, number):
        self.server, self.sock, self.number = server, sock, number

    def say(self, text):
        self.sock.sendall(text if isinstance(text, bytes) else text.encode() + b"\r\n")

    def read_until(self, end):
        """What the client says, up to and with `end`; less if it hangs up."""
        heard = b""
        while not heard.endswith(end) and (byte := self.sock.recv(1)):
            heard += byte
            self.server.received += byte
        return heard

    def read(self, size):
        heard = b""
        while len(heard) < size and (some := self.sock.recv(size - len(heard))):
            heard += some
        self.server.received += heard
        return heard

    def start_tls(self):
        self.sock = self.server.tls_context.wrap_socket(self.sock, server_side=True)
        self.server.sockets.append(self.sock)  # the one that it was made of is of no use any more, to hang up either


Action = Callable[[Peer], None]


def hangs(peer):
    """Say nothing and read nothing any more."""
    peer.server.stopped.wait(GIVE_UP_SECONDS)
    raise ConnectionAbortedError


def drips(start, *, then=b"x", every=0.02) -> Action:
    """Say `start` a byte at a time, then `then` again and again: never silent for long, and never done."""

    def drip(peer):
        ends_at = time.monotonic() + GIVE_UP_SECONDS
        remaining = start
        while time.monotonic() < ends_at and not peer.server.stopped.wait(every):
            peer.sock.sendall(remaining[:1] or then)
            remaining = remaining[1:]
        raise ConnectionAbortedError

    return drip


def closes(peer):
    peer.sock.close()


def resets(peer):
    """Hang up with a RST."""
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.sock.close()


class RawServer:
    """A server on 127.0.0.1, up within the `with` block; each connection has a thread that calls `converse(peer)`.

    This one says nothing and reads nothing.
    """

    def __init__(self, *, tls_context: ssl.SSLContext | None = None, host="127.0.0.1", port=0):
        self.tls_context = tls_context
        self.received = bytearray()
        """All that any client said; in clear, where it was said over TLS."""
        self.connection_count = 0
        self.stopped = threading.Event()
        self.sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server((host, port))
        self.host, self.port = self._listener.getsockname()

    def converse(self, peer: Peer) -> None:
        hangs(peer)

    def __enter__(self):
        self._start(self._accept)
        return self

    def __exit__(self, *exc_info):
        self.stopped.set()
        for sock in [self._listener, *self.sockets]:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _start(self, function, *arguments):
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                sock.settimeout(GIVE_UP_SECONDS)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.connection_count += 1
                self.sockets.append(sock)
                self._start(self._serve, Peer(self, sock, self.connection_count))

    def _serve(self, peer):
        try:
            with contextlib.suppress(OSError):
                self.converse(peer)
        finally:
            peer.sock.close()


class ScriptedServer(RawServer):
    """An SMTP server that says yes to everything, but does as `at` says at its steps.

        with ScriptedServer({"GREETING": hangs, "MAIL": "421 Not now"}) as server: ...

    Steps: CONNECT (before the greeting), GREETING, the client's verbs, TLS (the handshake), BODY (after the 354), DOT.
    `offers_pipelining` is for those who would have all of them offer it.
    An action is a reply line, or a function of the `Peer`; what it returns is said, too. `received` is what came in.
    """

    offers_pipelining = False

    def __init__(self, at: Mapping[str, str | Action] | None = None, *, features=(), **kwargs):
        super().__init__(**kwargs)
        self.at = dict(at or {})
        self.features = features
        self.accepted: list[bytes] = []
        self.empty_count = 0
        """How often the content was nothing but the final dot."""

    def mailer(self, **options):
        options = {"host": self.host, "port": self.port, "timeout": 30, **options}
        return {"BACKEND": "mailengine.backends.SMTPBackend", "OPTIONS": options}

    def converse(self, peer):
        self.act("CONNECT", peer, None)
        self.act("GREETING", peer, "220 hello")
        while line := peer.read_until(b"\n"):
            self.answer(line.split()[0].decode("latin-1").upper(), peer)

    def answer(self, verb, peer):
        if verb == "EHLO":
            words = ["hello", *(["PIPELINING"] if self.offers_pipelining else []), *self.features]
            lines = [f"250{' ' if word is words[-1] else '-'}{word}" for word in words]
            self.act("EHLO", peer, "\r\n".join(lines))
        elif verb == "STARTTLS":
            self.act("STARTTLS", peer, "220 go on")
            if "STARTTLS" not in self.at:
                self.act("TLS", peer, Peer.start_tls)
        elif verb == "DATA":
            said = self.act("DATA", peer, "354 go on")
            if said is None or said.startswith("354"):
                self.act("BODY", peer, self.take_body)
        else:
            known = {"QUIT": "221 bye", "AUTH": "235 welcome"}
            self.act(verb, peer, known.get(verb, "250 yes"))

    def take_body(self, peer):
        body = peer.read_until(b"\n")
        if body == b".\r\n":
            self.empty_count += 1
            peer.say("554 nothing in it")
            return
        body += peer.read_until(b"\r\n.\r\n")
        if body.endswith(b"\r\n.\r\n"):
            self.accepted.append(body)
            self.act("DOT", peer, "250 taken")

    def act(self, step, peer, default):
        action = self.at.get(step, default)
        if callable(action):
            action = action(peer)
        if action is not None:
            peer.say(action)
        return action


class ScriptedHTTPServer(RawServer):
    """An HTTP server that counts the requests it has read in full, and then does `answer(peer)`."""

    def __init__(self, answer: Action, **kwargs):
        super().__init__(**kwargs)
        self.answer = answer
        self.request_count = 0

    def converse(self, peer):
        if self.tls_context is not None:
            peer.start_tls()
        while head := peer.read_until(b"\r\n\r\n"):
            length = re.search(rb"(?i)content-length: (\d+)", head)
            peer.read(int(length[1]) if length else 0)
            self.request_count += 1
            self.answer(peer)


def says(status, body=b"{}", **headers) -> Action:
    """A proper HTTP answer."""
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}", "Content-Type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return lambda peer: peer.say("\r\n".join([*lines, "", ""]).encode() + body)


@contextlib.contextmanager
def no_more_threads():
    """Within it this process gets no new thread: the system has no stack of that size for one."""
    usual = threading.stack_size(2**46)
    try:
        yield
    finally:
        threading.stack_size(usual)


def make_certificate(folder, *, name="localhost", expired=False):
    """A self-signed certificate for `name`: the path of its PEM, and the server's side of TLS."""
    key, request, certificate = (folder / f"{name}{suffix}" for suffix in ("-key.pem", ".csr", ".pem"))
    (folder / "index.txt").touch()
    (folder / "ca.cnf").write_text(CA.format(folder=folder, name=name))
    ends = "20200102000000Z" if expired else "20991231000000Z"
    asks = f"req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN={name}"
    signs = f"ca -selfsign -batch -startdate 20200101000000Z -enddate {ends}"
    for command in (
        [*asks.split(), "-keyout", key, "-out", request],
        [*signs.split(), "-config", folder / "ca.cnf", "-keyfile", key, "-in", request, "-out", certificate],
    ):
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context


CA = """
[ca]
default_ca = own
[own]
database = {folder}/index.txt
new_certs_dir = {folder}
rand_serial = yes
default_md = sha256
policy = any
x509_extensions = extensions
[any]
commonName = supplied
[extensions]
subjectAltName = DNS:{name}
basicConstraints = critical,CA:true
keyUsage = critical,digitalSignature,keyCertSign
subjectKeyIdentifier = hash
"""
