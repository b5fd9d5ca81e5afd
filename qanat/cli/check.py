"""`check`: every fault of a configuration file on stderr, or of a key or certificate that it names, or `ok`."""

from __future__ import annotations

import argparse

from qanat.cli.output import write_out
from qanat.cli.parser import add_config
from qanat.config.client_settings import ClientTls
from qanat.config.load import check_config
from qanat.config.server_settings import ServerSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    add_config(parser, required=True)


def run(options: argparse.Namespace) -> int:
    """Print `ok`.  Raises ConfigError, which has the faults, and UsageError for what a start would not take."""
    server, client = check_config(options.config)
    if server is not None:
        _check_server(server)
    if client is not None:
        _check_client(client.tls)
    write_out("ok\n")
    return 0


def _check_server(server: ServerSettings) -> None:
    from qanat.handshake.identity import load_or_create_identity
    from qanat.transports.wire.tls_contexts import ReloadingServerContext

    if server.tls is not None:
        ReloadingServerContext(server.tls.certificate, server.tls.key, (), client_ca=server.tls.client_ca)
    if server.identity.exists():  # else the first start makes it
        load_or_create_identity(server.identity, create=False)


def _check_client(tls: ClientTls) -> None:
    from qanat.transports.wire.tls_contexts import client_tls_context

    if tls.ca_file is not None or tls.certificate is not None:
        client_tls_context(tls.ca_file, (), certificate=tls.certificate, key=tls.key)
