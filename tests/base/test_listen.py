"""Binding and accepting: one port on several addresses, a close that wakes, and no spinning without descriptors."""

from __future__ import annotations

import errno
import os
import socket
import threading
from contextlib import ExitStack

import pytest

from qanat.base.addresses import ListenAddress, listen_addresses
from qanat.base.errors import BindError, OutOfFiles, UsageError
from qanat.base.listen import Acceptor, bind
from tests.support.background import Background, wait_until
from tests.support.machine.descriptors import files_limited
from tests.support.machine.networks import in_a_network_of_its_own, ip


def acceptor(stack: ExitStack, *addresses: ListenAddress) -> Acceptor:
    made = Acceptor(bind(addresses, backlog=16))
    stack.callback(made.close)
    return made


def connect(stack: ExitStack, address: tuple[str, int]) -> socket.socket:
    return stack.enter_context(socket.create_connection(address, 10))


def test_localhost_is_both_families_with_one_port(stack: ExitStack) -> None:
    both = acceptor(stack, *listen_addresses("localhost", 0))
    (four, port), (six, other) = both.addresses
    assert (four, six, other) == ("127.0.0.1", "::1", port)
    for address in both.addresses:
        client = connect(stack, address)
        accepted = both.accept()
        assert accepted is not None
        with accepted[0] as sock:
            assert accepted[1][:2] == client.getsockname()[:2]
            assert sock.gettimeout() is None


def test_a_star_is_every_address_of_both_families(stack: ExitStack) -> None:
    every = acceptor(stack, *listen_addresses("*", 0))
    port = every.addresses[0][1]
    assert every.addresses == (("0.0.0.0", port), ("::", port))
    for host in ("127.0.0.2", "::1"):
        connect(stack, (host, port))
        accepted = every.accept()
        assert accepted is not None
        accepted[0].close()


def test_a_port_of_the_systems_choice_is_free_on_both(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first choice is taken on ::1, so another one is made."""
    bind_it = socket.socket.bind
    failed: list[int] = []

    def bind_seldom(sock: socket.socket, address: tuple[str, int]) -> None:
        if address[0] == "::1" and len(failed) < 3:
            failed.append(address[1])
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        bind_it(sock, address)

    monkeypatch.setattr(socket.socket, "bind", bind_seldom)
    (_, port), (_, other) = acceptor(stack, *listen_addresses("localhost", 0)).addresses
    assert port == other
    assert len(failed) == 3


def test_a_port_taken_on_one_of_its_addresses_leaves_none_bound(stack: ExitStack) -> None:
    holder = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
    port = holder.getsockname()[1]
    with pytest.raises(BindError, match=rf"\[::1\]:{port}: Address already in use") as caught:
        bind(listen_addresses("localhost", port), backlog=1)
    assert caught.value.number == errno.EADDRINUSE
    assert f"ss -ltnp 'sport = :{port}'" in caught.value.hint
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_without_ipv6_only_ipv4_is_listened_on() -> None:
    def scenario() -> None:
        ip("link", "set", "lo", "up")
        ip("address", "delete", "::1/128", "dev", "lo")
        with ExitStack() as stack:
            assert [host for host, _ in acceptor(stack, *listen_addresses("localhost", 0)).addresses] == ["127.0.0.1"]
            with pytest.raises(BindError):
                bind(listen_addresses("::1", 0), backlog=1)

    in_a_network_of_its_own(scenario)


def test_a_name_is_no_address_to_bind() -> None:
    with pytest.raises(UsageError, match="is not an IP address"):
        bind([ListenAddress("example.invalid", 1)], backlog=1)


def test_an_interface_that_does_not_exist_is_said() -> None:
    with pytest.raises(BindError) as caught:
        bind([ListenAddress("fe80::1%nowhere", 0)], backlog=1)
    assert caught.value.hint


def test_close_wakes_who_accepts_and_frees_the_port(stack: ExitStack) -> None:
    waiting = acceptor(stack, *listen_addresses("localhost", 0))
    accepting = Background(waiting.accept)
    assert not accepting.wait(0.05)
    closers = [threading.Thread(target=waiting.close) for _ in range(4)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join()
    assert accepting.result() is None
    assert waiting.accept() is None
    with socket.create_server(waiting.addresses[0]):
        pass


def test_options_are_there_for_what_is_accepted(stack: ExitStack) -> None:
    def configure(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)

    made = Acceptor(bind(listen_addresses("127.0.0.1", 0), backlog=1, configure=configure))
    stack.callback(made.close)
    connect(stack, made.addresses[0])
    accepted = made.accept()
    assert accepted is not None
    with accepted[0] as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)


def test_without_descriptors_it_says_so_and_goes_on_later(stack: ExitStack) -> None:
    made = acceptor(stack, *listen_addresses("127.0.0.1", 0))
    client = stack.enter_context(socket.socket())
    with files_limited():
        client.connect(made.addresses[0])
        with pytest.raises(OutOfFiles, match="ulimit -n"):
            made.accept()
    accepted = made.accept()
    assert accepted is not None
    accepted[0].close()


def test_one_that_has_gone_again_is_no_connection(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    made = acceptor(stack, *listen_addresses("127.0.0.1", 0))
    accept = socket.socket.accept
    gone: list[int] = []

    def accept_later(sock: socket.socket) -> object:
        if not gone:
            gone.append(1)
            raise OSError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))
        return accept(sock)

    monkeypatch.setattr(socket.socket, "accept", accept_later)
    connect(stack, made.addresses[0])
    accepted = made.accept()
    assert accepted is not None
    accepted[0].close()
    assert gone
    made.close()
    wait_until(lambda: made.closed, "it is closed")
