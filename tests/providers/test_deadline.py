"""Deadline: a hard end for work on sockets, whatever the other side does."""

from __future__ import annotations

import errno
import gc
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from mailengine import deadline as deadline_module
from mailengine.deadline import Deadline, Guarded, connect, current
from mailengine.providers.classify import outcome_of_error

from .scripted import RawServer, no_more_threads


@pytest.fixture
def pair():
    """Two connected sockets; a wait longer than 15 s on one of them fails the test."""
    ours, theirs = socket.socketpair()
    ours.settimeout(15)
    with ours, theirs:
        yield ours, theirs


def in_seconds(seconds):
    return Deadline(time.monotonic() + seconds)


def test_who_waits_for_a_guarded_socket_is_woken_when_the_time_is_over(pair):
    with in_seconds(0.1) as deadline:
        deadline.guard(pair[0])
        assert pair[0].recv(1) == b""
        assert deadline.has_passed
        assert deadline.remaining_seconds == 0


def test_a_socket_is_left_alone_once_its_block_is_left(pair):
    with in_seconds(0.1) as deadline:
        deadline.guard(pair[0])
    time.sleep(0.2)
    pair[0].sendall(b"x")

    assert pair[1].recv(1) == b"x"


def test_a_close_is_heard_by_the_other_side_when_the_block_is_left(pair):
    with in_seconds(10) as deadline:
        deadline.guard(pair[0])
        pair[0].close()

    assert pair[1].recv(1) == b""


def test_one_socket_may_be_guarded_again_and_again(pair):
    guarded = Guarded(pair[0])
    for _ in range(3):
        with in_seconds(0.05) as deadline:
            deadline.guard(guarded)
    time.sleep(0.1)
    pair[0].sendall(b"x")
    assert pair[1].recv(1) == b"x"

    with in_seconds(0.05) as deadline:
        deadline.guard(guarded)
        assert pair[0].recv(1) == b""
        assert deadline.has_passed
    guarded.close()


def test_what_is_closed_is_heard_by_the_other_side_and_left_alone(pair):
    """The next file that is opened may have its number."""
    guarded = Guarded(pair[0])
    with in_seconds(0.1) as deadline:
        deadline.guard(guarded)
        pair[0].close()
        guarded.close()
        assert pair[1].recv(1) == b""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            time.sleep(0.2)
            ours.sendall(b"x")
            assert theirs.recv(1) == b"x"


@pytest.mark.parametrize(("outer", "inner"), [(0.1, 10), (10, 0.1)])
def test_of_nested_deadlines_the_earlier_counts(pair, outer, inner):
    with in_seconds(outer) as first, in_seconds(inner) as second:
        assert current() is second
        second.guard(pair[0])
        assert pair[0].recv(1) == b""
    assert current() is None
    assert first is second or not first.has_passed


def test_an_inner_deadline_ends_without_the_outer(pair):
    with in_seconds(10) as outer:
        outer.guard(pair[0])
        with in_seconds(0.05):
            time.sleep(0.1)
        assert current() is outer
        pair[0].sendall(b"x")
        assert pair[1].recv(1) == b"x"


def test_nothing_is_begun_once_the_time_is_over(pair):
    with in_seconds(-1) as deadline:
        with pytest.raises(TimeoutError, match="not done within 0 s"):
            deadline.guard(pair[0])
        with pytest.raises(TimeoutError):
            deadline.check()
        with pytest.raises(TimeoutError):
            connect("127.0.0.1", 9, timeout=1)


def test_it_says_how_long_the_time_was():
    assert str(in_seconds(60)) == "not done within 60 s"


def test_each_of_many_deadlines_ends_at_its_own_time():
    """Later ones first, so that the watchdog must wake up sooner than it meant to."""
    woken = []

    def wait(seconds):
        ours, theirs = socket.socketpair()
        ours.settimeout(15)
        with ours, theirs, in_seconds(seconds) as deadline:
            deadline.guard(ours)
            ours.recv(1)
            woken.append(seconds)

    threads = [threading.Thread(target=wait, args=(seconds,)) for seconds in (0.9, 0.6, 0.3)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join()

    assert woken == [0.3, 0.6, 0.9]


FORKS = """
import os, socket, time, warnings
from mailengine.deadline import Deadline
warnings.simplefilter("ignore")
ours, theirs = socket.socketpair()
ours.settimeout(15)
with Deadline(time.monotonic() + 0.5) as deadline:
    deadline.guard(ours)
    child = os.fork()
    if child == 0:
        with Deadline(time.monotonic() + 0.1) as own:
            mine, other = socket.socketpair()
            mine.settimeout(15)
            own.guard(mine)
            assert mine.recv(1) == b""
        os._exit(0 if not deadline.has_passed else 3)
    assert os.waitpid(child, 0)[1] == 0
    assert not deadline.has_passed
    theirs.sendall(b"x")
    assert ours.recv(1) == b"x", "shut down by the child"
    assert ours.recv(1) == b""
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() on this system")
def test_a_forked_process_has_a_watchdog_of_its_own():
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr


FORKS_LATE = """
import os, socket, stat, time, warnings
from contextlib import suppress
from mailengine.deadline import Deadline
warnings.simplefilter("ignore")

def open_sockets():
    for number in range(3, 256):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                yield number

ours, theirs = socket.socketpair()
ours.settimeout(15)
with Deadline(time.monotonic() + 0.05) as deadline:
    deadline.guard(ours)
    assert ours.recv(1) == b""
    child = os.fork()
    if child == 0:
        os._exit(len(set(open_sockets()) - {ours.fileno(), theirs.fileno()}))
    assert os.waitpid(child, 0)[1] == 0, "more is open in the child than its two ends"
assert len(list(open_sockets())) == 2
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() on this system")
def test_a_forked_process_keeps_nothing_of_a_deadline_that_had_passed():
    done = subprocess.run([sys.executable, "-c", FORKS_LATE], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr


@pytest.fixture
def no_watchdog(monkeypatch):
    """This process as it was before its first deadline."""
    monkeypatch.setattr(deadline_module, "_watchdog", deadline_module._Watchdog())


@pytest.mark.usefixtures("no_watchdog")
def test_where_no_thread_can_be_started_this_host_is_at_fault(pair):
    with socket.create_server(("127.0.0.1", 0)) as listener, in_seconds(10):
        with no_more_threads():
            with pytest.raises(OSError, match="can't start new thread") as guarding:
                current().guard(pair[0])
            with pytest.raises(OSError, match="can't start new thread") as connecting:
                connect(*listener.getsockname(), timeout=15)
        assert current()._guarded == []
        connect(*listener.getsockname(), timeout=15).close()

    for caught in (guarding, connecting):
        assert caught.value.errno == errno.EAGAIN
        assert outcome_of_error(caught.value, opening=True).is_local


def test_an_interrupted_connect_leaves_no_socket_open(monkeypatch):
    """The test fails by the warning of an unclosed socket."""

    def interrupted(_sock):
        raise KeyboardInterrupt

    monkeypatch.setattr(deadline_module, "guard", interrupted)
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(KeyboardInterrupt):
        connect(*listener.getsockname(), timeout=15)
    gc.collect()


@pytest.fixture
def black_hole():
    """An address at which connections are neither taken nor refused."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = [socket.socket() for _ in range(4)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
    yield listener.getsockname()
    for sock in [listener, *fillers]:
        sock.close()


@pytest.fixture
def resolve(monkeypatch):
    """A function that gives the host "mx.example.org" these addresses."""

    def give(*addresses):
        found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", address) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kwargs: found)

    return give


def test_an_address_that_does_not_answer_leaves_the_next_one_its_time(black_hole, resolve):
    with RawServer() as server:
        resolve(black_hole, (server.host, server.port))
        with in_seconds(1), connect("mx.example.org", 25, timeout=10) as connection:
            assert connection.getpeername() == (server.host, server.port)
            assert connection.gettimeout() == 10


def test_many_addresses_have_no_more_time_than_one(black_hole, resolve):
    resolve(*[black_hole] * 20)
    began_at = time.monotonic()
    with in_seconds(0.3), pytest.raises(TimeoutError):
        connect("mx.example.org", 25, timeout=1)

    assert time.monotonic() - began_at < 5  # one second each would be twenty


def test_a_guarded_connection_is_shut_down_too(pair):
    with RawServer() as server, in_seconds(0.1), connect(server.host, server.port, timeout=15) as connection:
        assert connection.recv(1) == b""
        assert current().has_passed


def test_without_a_deadline_a_connection_has_its_timeout_alone(black_hole):
    with pytest.raises(TimeoutError):
        connect(*black_hole, timeout=0.1)
