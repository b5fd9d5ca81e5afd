"""`client`: run the end that dials, until a signal stops it or the server refuses it for good."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable, Container

from qanat.base.addresses import parse_target
from qanat.base.endpoint_addresses import TcpAddress
from qanat.base.errors import UsageError
from qanat.cli.flags import add_flags, flags_of, given_flags
from qanat.cli.main import DONE
from qanat.cli.parser import add_config, add_lock
from qanat.cli.running import SIGNALS, run_logged
from qanat.config.client_settings import ClientSettings
from qanat.config.command_line import client_from_options, with_flags
from qanat.config.load import load_config
from qanat.config.settings import LogSettings
from qanat.process.daemon import take_lock
from qanat.process.reloading import Reloader

DETAILS = (
    """\
-L and -R take ssh's syntax, and may be given several times:
  -L [ADDRESS:]PORT:HOST:HOSTPORT   listen here, connect to HOST:HOSTPORT from the server
  -R [ADDRESS:]PORT:HOST:HOSTPORT   listen on the server, connect to HOST:HOSTPORT from here
  -D [ADDRESS:]PORT                 a SOCKS and HTTP proxy here, connecting from the server
  -R [ADDRESS:]PORT                 one at the server, connecting from here as --allow-connect says
  -L [ADDRESS:]PORT:HOST:HOSTPORT/udp   the same over UDP, as --udp without the /udp; -R likewise
  -L LOW-HIGH:HOST:LOW-HIGH         as many ports in turn; -R likewise
  -L /PATH:HOST:HOSTPORT, PORT:/PATH, /PATH:/PATH   Unix sockets, or @NAME; -R likewise
ADDRESS is localhost (127.0.0.1 and ::1) when left out, and * is every address.
-W HOST:PORT carries standard input and output, through the client that runs for this name and
server where one does: ssh -o ProxyCommand='tunnel.py client -c FILE -W %h:%p' HOST
-N, which ssh needs for that, is taken and ignored.

The token comes from the configuration file, from --token-file or from the environment variable
QANAT_TOKEN; never from the command line, where every user of the machine could read it.
The client's name is the first of: --name, the part before @ in the URL, QANAT_NAME, the name of
the token file without its ending, "client".

Without --proxy the environment names one, as for curl: HTTPS_PROXY (http_proxy for ws://),
ALL_PROXY, and NO_PROXY for what is reached without.

Several URLs, beside each other, are several ways to the same server. Unless --transport fixes it,
the client finds the one that the path allows, over any transport, and remembers it. Several fixed
ones are tried in turn with each URL: --transport http2,grpc or --transport http2 --transport grpc.

"""
    + SIGNALS
)

_SSH_ONLY = {
    "f": (
        "-f is not available: this program does not go to the background by itself",
        "end the line with &, or run it under systemd, supervisor or cron (see deploy/)",
    ),
    "g": (
        "-g is not available: each forward says who may connect to it",
        "write the address into -L: 0.0.0.0:PORT:HOST:HOSTPORT lets other machines in",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    parser.add_argument("urls", nargs="*", metavar="URL", help="wss://[NAME@]HOST[:PORT]/PATH, instead of -c FILE")
    add_config(parser, required=False)
    add_flags(parser.add_argument_group("with a URL"), ClientSettings, beside_file=False)
    add_lock(parser)
    parser.add_argument(
        "-W",
        dest="stdio",
        metavar="HOST:PORT",
        help="join standard input and output to HOST:PORT, as ssh -W, and end with it; see below",
    )
    group = parser.add_argument_group("logs and files; these override the configuration")
    add_flags(group, ClientSettings, beside_file=True)
    parser.add_argument("-N", action="store_true", help=argparse.SUPPRESS)
    for name in _SSH_ONLY:
        parser.add_argument(f"-{name}", action="store_true", help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    """Keep the tunnel up until a signal comes, and return the exit code.  Blocks.  Raises QanatError."""
    for name, (message, hint) in _SSH_ONLY.items():
        if getattr(options, name):
            raise UsageError(message, hint=hint)
    # Before all else: cron starts this every minute, and it must cost nothing when it runs already.
    if options.lock is not None and take_lock(options.lock) is None:
        return DONE
    settings = settings_of(options)
    if options.stdio is not None:
        return _run_stdio(options, settings)

    reloader = Reloader(options.config, None if options.config is None else lambda: settings_of(options))

    def dial(stop: threading.Event, ready: Callable[[], None]) -> None:
        from qanat.client.client import run_client

        run_client(settings, stop, ready, reloader)

    return run_logged(dial, settings.log, settings.pid_file, on_hangup=reloader.hangup)


def _run_stdio(options: argparse.Namespace, settings: ClientSettings) -> int:
    """Join standard input and output to a target; return the exit code.  Blocks.  Raises QanatError."""
    try:
        to = TcpAddress(*parse_target(options.stdio))
    except UsageError as error:
        raise UsageError(f"-W {options.stdio} {error.message}", hint=error.hint) from error
    given = given_flags(options, ClientSettings)
    # Whoever reads our output reads the log beside it, and a file that a running client logs to is its own.
    log_settings = LogSettings(level=settings.log.level if "verbose" in given else "error", file=given.get("log_file"))

    def carry(stop: threading.Event, ready: Callable[[], None]) -> None:
        from qanat.client.stdio import run_stdio

        run_stdio(settings, to, stop)

    return run_logged(carry, log_settings, None, hangup_stops=True)


def settings_of(
    options: argparse.Namespace, what: str = "a client", command: str = "client", beside_file: Container[str] = ()
) -> ClientSettings:
    """Return what a command line says about a client, for `what` that `command` is to start.  Raises UsageError.

    `beside_file` has the `dest` of flags that go with a file though a client takes them with a URL alone.
    """
    if (options.config is None) == (not options.urls):
        raise UsageError(f"{what} needs either -c FILE or a URL", hint=f"see: {command} --help")
    given = given_flags(options, ClientSettings)
    if options.urls:
        return client_from_options(urls=options.urls, **given)
    for _, flag in flags_of(ClientSettings):
        if flag.dest in given and not flag.beside_file and flag.dest not in beside_file:
            raise UsageError(f"{flag.name} goes with a URL, not with -c", hint=f"write it into {options.config}")
    return with_flags(load_config(options.config, want="client"), given)
