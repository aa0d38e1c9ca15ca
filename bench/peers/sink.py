"""Where the mail arrives: Postfix's `smtp-sink`, which only counts, or a sink of our own, which knows each address.

    python sink.py --port 42525 --delay-ms 50

Our own accepts everything and remembers when each recipient's mail was accepted; `--delay-ms` is how long it takes to
answer the end of a mail. Two verbs of its own are for the bench: XRESET forgets, XDUMP tells all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import smtplib
import socket
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from environment import HOME, PostfixTools, free_port, running

RECIPIENT = re.compile(rb"TO:\s*<([^>]*)>", re.IGNORECASE)
GREETING = b"250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"

# What the bench sees of a sink


class PostfixSink:
    """`smtp-sink`, in C: what arrives costs the cores little, and is counted."""

    name = "smtp-sink"

    def __init__(self, tools: PostfixTools) -> None:
        self.tools, self.port = tools, free_port()
        self._before = 0

    def __enter__(self) -> PostfixSink:
        self._stack = ExitStack()
        self._counts = self._stack.enter_context(tempfile.TemporaryFile(dir=HOME))
        user = [] if os.geteuid() else ["-u", "nobody"]
        command = [self.tools.sink, "-4", "-c", *user, f"127.0.0.1:{self.port}", "1000"]
        self._stack.enter_context(running(command, self.port, env=self.tools.env, stdout=self._counts))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def reset(self) -> None:
        self._before = self._total()

    def count(self) -> int:
        """Mails since the last `reset()`."""
        return self._total() - self._before

    def duplicates(self) -> int:
        return 0  # it can't tell; one too many shows in `count()`

    def _total(self) -> int:
        size = os.fstat(self._counts.fileno()).st_size
        found = re.findall(rb"mesg=(\d+)", os.pread(self._counts.fileno(), 400, max(0, size - 400)))
        return int(found[-1]) if found else 0


class CountingSink:
    """Our own sink in another process. It costs more than Postfix's, and knows who got what, when, how often."""

    name = "Python sink"

    def __init__(self, *, delay_ms: float = 0) -> None:
        self.port, self.delay_ms = free_port(), delay_ms

    def __enter__(self) -> CountingSink:
        command = [sys.executable, __file__, "--port", str(self.port), "--delay-ms", str(self.delay_ms)]
        self._stack = ExitStack()
        self._stack.enter_context(running(command, self.port))
        self._client = self._stack.enter_context(smtplib.SMTP("127.0.0.1", self.port, local_hostname="bench"))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def reset(self) -> None:
        self._client.docmd("XRESET")

    def count(self) -> int:
        return int(self._client.docmd("XCOUNT")[1])

    def duplicates(self) -> int:
        arrived = [address for address, _at in self.arrivals()]
        return len(arrived) - len(set(arrived))

    def arrivals(self) -> list[tuple[str, float]]:
        """(address, unix time) of each mail since the last `reset()`, as they came."""
        with tempfile.NamedTemporaryFile(dir=HOME) as file:
            self._client.docmd(f"XDUMP {file.name}")
            return [tuple(row) for row in json.loads(Path(file.name).read_text())]


# The sink itself


class Session(asyncio.Protocol):
    """One connection; its commands may be pipelined."""

    def __init__(self, arrivals: list[tuple[str, float]], delay_seconds: float) -> None:
        self.arrivals, self.delay_seconds = arrivals, delay_seconds
        self.buffer = bytearray()
        self.recipients: list[str] = []
        self.is_in_data = self.is_answering = False
        self.scanned = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.write(b"220 sink ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self._advance()

    def _advance(self) -> None:
        while not self.is_answering:
            if self.is_in_data:
                end = self.buffer.find(b"\r\n.\r\n", max(0, self.scanned - 4))
                if end < 0:
                    self.scanned = len(self.buffer)
                    return
                del self.buffer[: end + 5]
                self.is_in_data, self.scanned = False, 0
                if self.delay_seconds:
                    self.is_answering = True
                    asyncio.get_running_loop().call_later(self.delay_seconds, self._accept)
                else:
                    self._accept()
            else:
                end = self.buffer.find(b"\r\n")
                if end < 0:
                    return
                line = bytes(self.buffer[:end])
                del self.buffer[: end + 2]
                self._obey(line)

    def _accept(self) -> None:
        now = time.time()
        self.arrivals.extend((address, now) for address in self.recipients)
        self._answer(b"250 2.0.0 Ok: queued")
        if self.is_answering:
            self.is_answering = False
            self._advance()

    def _obey(self, line: bytes) -> None:
        verb = line[:6].rstrip(b": ").upper()
        if verb.startswith(b"RCPT"):
            found = RECIPIENT.search(line)
            self.recipients.append(found[1].decode("utf-8", "replace") if found else "?")
            self._answer(b"250 2.1.5 Ok")
        elif verb.startswith(b"DATA"):
            self.is_in_data = True
            self.buffer[:0] = b"\r\n"  # the end is looked for with the line end before its dot
            self._answer(b"354 End data with <CR><LF>.<CR><LF>")
        elif verb.startswith(b"EHLO"):
            self.transport.write(GREETING)
        elif verb.startswith(b"QUIT"):
            self._answer(b"221 2.0.0 Bye")
            self.transport.close()
        elif verb == b"XCOUNT":
            self._answer(b"250 %d" % len(self.arrivals))
        elif verb == b"XDUMP":
            Path(line[6:].decode().strip()).write_text(json.dumps(self.arrivals))
            self._answer(b"250 Ok")
        else:
            if verb == b"XRESET":
                self.arrivals.clear()
            self.recipients = []  # MAIL and RSET
            self._answer(b"250 2.0.0 Ok")

    def _answer(self, line: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(line + b"\r\n")


async def serve(port: int, delay_ms: float) -> None:
    arrivals: list[tuple[str, float]] = []
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Session(arrivals, delay_ms / 1_000), "127.0.0.1", port, backlog=1_024)
    await loop.create_future()


if __name__ == "__main__":
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay-ms", type=float, default=0)
    options = parser.parse_args()
    uvloop.run(serve(options.port, options.delay_ms))
