"""The command line: parse, load, run, exit code; nothing else lives here.

Each command imports what it needs when it runs, so that `token`, `check` and `--version` answer at
once.  What the commands do is in `service`.  Installed, this is the command `qanat`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qanat.base.errors import QanatError, RefusedError, UsageError
from qanat.base.version import __version__

if TYPE_CHECKING:
    from qanat.config.settings import ClientSettings, LogSettings
    from qanat.process.daemon import Run

log = logging.getLogger("qanat.tunnel")

DONE, FAILED, USAGE, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130

_OURS = ("qanat",)

EXIT_CODES = """\
exit codes:
  0    done, or stopped by SIGTERM or SIGINT
  1    failed while running
  2    bad usage or configuration
  3    refused by the other end (token, fingerprint) before this process ever succeeded
  130  Ctrl-C before it had begun; 128 + the signal's number: ended at once by a second one
"""

SIGNALS = """\
signals:
  SIGTERM, SIGINT   stop: open streams get a few seconds to finish; a second one ends at once
  SIGHUP            open the log file again, after logrotate has moved it

"""

URL_OPTIONS = (
    "local",
    "remote",
    "name",
    "token_file",
    "fingerprint",
    "ca_file",
    "cert",
    "key",
    "proxy",
    "proxy_password_file",
    "connect_to",
    "header",
    "header_file",
    "transport",
    "lanes",
)
"""What goes with a URL on the command line, and with a configuration file in that."""

CLIENT_DETAILS = """\
-L and -R take ssh's syntax, and may be given several times:
  -L [ADDRESS:]PORT:HOST:HOSTPORT   listen here, connect to HOST:HOSTPORT from the server
  -R [ADDRESS:]PORT:HOST:HOSTPORT   listen on the server, connect to HOST:HOSTPORT from here
ADDRESS is 127.0.0.1 when left out.

The token comes from the configuration file, from --token-file or from the environment variable
QANAT_TOKEN; never from the command line, where every user of the machine could read it.
The client's name is the first of: --name, the part before @ in the URL, QANAT_NAME, the name of
the token file without its ending, "client".

Without --proxy the environment names one, as for curl: HTTPS_PROXY (http_proxy for ws://),
ALL_PROXY, and NO_PROXY for what is to be reached without.

Several URLs, beside each other, are several ways to the same server, and are tried in turn; so are
several transports with each URL: --transport http2,grpc or --transport http2 --transport grpc.

"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the process's exit code, or raises SystemExit as argparse does."""
    _open_standard_streams()
    options = build_parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in _OURS:
            raise
        complain(_missing(error.name))
        return FAILED
    except QanatError as error:
        complain(error)
        return exit_code(error)
    except KeyboardInterrupt:
        return INTERRUPTED


def _open_standard_streams() -> None:
    """Put /dev/null where the caller has closed one: the next socket would get its number, and what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            stream = open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def _missing(package: str) -> QanatError:
    return QanatError(
        f"the Python package {package!r} is not installed for {sys.executable}",
        hint="run it with the Python of its virtual environment (.venv/bin/python, which `make demo` makes), "
        "build one file with all inside (make pyz), or install: python -m pip install .",
    )


def exit_code(error: QanatError) -> int:
    """The exit code that says what kind of failure ended the process."""
    if isinstance(error, UsageError):
        return USAGE
    return REFUSED if isinstance(error, RefusedError) else FAILED


def complain(error: QanatError) -> None:
    """Say on stderr what happened, each fault of a configuration in a line of its own, and what to do next."""
    lines = [*getattr(error, "faults", ()), f"qanat: error: {error.message}"]
    if error.hint:
        lines.append(f"hint: {error.hint}")
    with contextlib.suppress(OSError):  # the exit code says it too
        for line in lines:
            print(line, file=sys.stderr)


def serve(options: argparse.Namespace) -> int:
    """`server`: run until a signal stops it."""
    from dataclasses import replace

    from qanat.config.load import load_config

    settings = load_config(options.config, want="server")
    settings = replace(
        settings, log=_log_settings(options, settings.log), pid_file=options.pid_file or settings.pid_file
    )

    def run(stop: threading.Event, ready: Callable[[], None]) -> None:
        from qanat.server.server import run_server

        run_server(settings, stop, ready)

    return _run_daemon(run, settings.log, settings.pid_file)


def dial(options: argparse.Namespace) -> int:
    """`client`: run until a signal stops it, or until the server refuses us for good."""
    from dataclasses import replace

    from qanat.process.daemon import take_lock

    # Before all else: cron starts this every minute, and it is to cost nothing when it runs already.
    if options.lock is not None and take_lock(options.lock) is None:
        return DONE
    settings = _client_settings(options)
    settings = replace(
        settings, log=_log_settings(options, settings.log), pid_file=options.pid_file or settings.pid_file
    )

    def run(stop: threading.Event, ready: Callable[[], None]) -> None:
        from qanat.client.client import run_client

        run_client(settings, stop, ready)

    return _run_daemon(run, settings.log, settings.pid_file)


def _client_settings(options: argparse.Namespace) -> ClientSettings:
    if (options.config is None) == (not options.urls):
        raise UsageError("a client needs either -c FILE or a URL", hint="see: client --help")
    if options.urls:
        from qanat.config.command_line import client_from_options

        return client_from_options(
            urls=options.urls,
            local=options.local,
            remote=options.remote,
            name=options.name,
            token_file=options.token_file,
            fingerprint=options.fingerprint,
            ca_file=options.ca_file,
            certificate=options.cert,
            key=options.key,
            proxy=options.proxy,
            proxy_password_file=options.proxy_password_file,
            connect_to=options.connect_to,
            headers=options.header,
            header_files=options.header_file,
            transports=options.transport,
            lanes=options.lanes,
        )
    for name in URL_OPTIONS:
        if getattr(options, name) not in (None, []):
            flag = {"local": "-L", "remote": "-R"}.get(name, "--" + name.replace("_", "-"))
            raise UsageError(f"{flag} goes with a URL, not with -c", hint=f"write it into {options.config}")
    from qanat.config.load import load_config

    return load_config(options.config, want="client")


def _log_settings(options: argparse.Namespace, configured: LogSettings) -> LogSettings:
    from dataclasses import replace

    return replace(
        configured,
        level="debug" if options.verbose else configured.level,
        format=options.log_format or configured.format,
        file=options.log_file or configured.file,
    )


def _run_daemon(run: Run, log_settings: LogSettings, pid_file: Path | None) -> int:
    from qanat.process.daemon import run_daemon
    from qanat.process.log import setup_logging

    setup_logging(log_settings)
    # What logs to a terminal ends with it, as any program does; what logs to a file stays.
    hangup_stops = log_settings.file is None and sys.stderr.isatty()
    try:
        run_daemon(run, pid_file=pid_file, hangup_stops=hangup_stops)
    except QanatError as error:
        # A text log on stderr says it once, in `complain`; any other reader of the log must hear of it too.
        if log_settings.file is None and log_settings.format == "text":
            raise
        log.error("%s", error, extra={"event": "failed", "exit_code": exit_code(error), "hint": error.hint})
        if log_settings.file is not None:
            raise
        return exit_code(error)
    except Exception:
        log.exception("ended by an unexpected error; please report it", extra={"event": "bug"})
        return FAILED
    return DONE


def init(options: argparse.Namespace) -> int:
    """`init`: write a working pair of configurations, and say what to do with them."""
    from qanat.cli.init_files import write_files

    written = write_files(options.directory, name=options.name, url=options.url, listen=options.listen)
    program = _program()
    print(
        f"Wrote {written.server_yaml}, {written.client_yaml}, {written.token_file} and {written.identity}.\n"
        f"\nBehind nginx (the whole file: deploy/nginx.conf), paste into its `server` block:\n"
        f"\n{written.nginx_block}"
        f"\nNext, on the server:\n  {program} server -c {written.server_yaml}\n"
        f"and on the client, with {written.client_yaml.name} and {written.token_file.name} beside each other:\n"
        f"  {program} client -c {written.client_yaml}\n"
        f"Then this goes through the tunnel:\n  curl http://{written.sample}/healthz"
    )
    return DONE


def _program() -> str:
    """How the user called this program, for commands to be typed next."""
    import shutil

    called = sys.argv[0]
    if not called.endswith((".py", ".pyz")):
        return os.path.basename(called)
    python = sys.executable
    if shutil.which("python3") == python:
        python = "python3"
    elif python.startswith(os.getcwd() + os.sep):
        python = os.path.relpath(python)
    return f"{python} {called}"


def token(options: argparse.Namespace) -> int:
    """`token`: print a new token."""
    from qanat.handshake.tokens import generate_token

    print(generate_token())
    return DONE


def fingerprint(options: argparse.Namespace) -> int:
    """`fingerprint`: print the fingerprint of the key that the configuration names; makes no key."""
    from qanat.config.load import load_config
    from qanat.handshake.identity import load_or_create_identity

    # A key made here might belong to the wrong user, and the server could not read it.
    settings = load_config(options.config, want="server")
    print(load_or_create_identity(settings.identity, create=False).fingerprint)
    return DONE


def check(options: argparse.Namespace) -> int:
    """`check`: every fault of a configuration file on stderr, or `ok`."""
    from qanat.config.load import check_config

    check_config(options.config)
    print("ok")
    return DONE


def demo(options: argparse.Namespace) -> int:
    """`demo`: a whole tunnel on loopback."""
    from qanat.cli.demo import run_demo

    return run_demo(once=options.once)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        description="Carries TCP through ordinary HTTP infrastructure, sealed end to end.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"qanat {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(
        name: str, run: Callable[[argparse.Namespace], int], text: str, details: str = ""
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=details + EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(command=run)
        return command

    server = add("server", serve, "run the end that accepts HTTP connections", SIGNALS)
    _add_config(server, required=True)
    _add_daemon_options(server)

    client = add("client", dial, "run the end that dials, from a file or from a URL", CLIENT_DETAILS + SIGNALS)
    client.add_argument("urls", nargs="*", metavar="URL", help="wss://[NAME@]HOST[:PORT]/PATH, instead of -c FILE")
    _add_config(client, required=False)
    _add_url_options(client.add_argument_group("with a URL"))
    client.add_argument(
        "--lock", type=Path, metavar="FILE", help="exit at once and in silence when FILE is locked (cron)"
    )
    _add_daemon_options(client)

    files = add("init", init, "write a server's and a client's configuration that fit together, a token and a key")
    files.add_argument("directory", nargs="?", type=Path, default=Path(), metavar="DIR", help="where (default: here)")
    files.add_argument("--name", default="client", help="the client's name (default: client)")
    files.add_argument("--url", help="what the client dials (default: ws://127.0.0.1:8443/tunnel)")
    files.add_argument("--listen", default="127.0.0.1:8443", metavar="ADDRESS:PORT", help="default: 127.0.0.1:8443")

    add("token", token, "print a new token")
    _add_config(
        add("fingerprint", fingerprint, "print the fingerprint of the server's key; makes no key"), required=True
    )
    _add_config(add("check", check, "say `ok`, or print every fault of a configuration file"), required=True)
    once = add("demo", demo, "run a whole tunnel on loopback and prove it by a request through it")
    once.add_argument("--once", action="store_true", help="end after the proof")
    return parser


def _add_config(command: argparse.ArgumentParser, *, required: bool) -> None:
    command.add_argument("-c", "--config", type=Path, metavar="FILE", required=required, help="the configuration, YAML")


def _add_url_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-L", dest="local", action="append", default=[], metavar="FORWARD", help="as ssh -L; see below")
    group.add_argument("-R", dest="remote", action="append", default=[], metavar="FORWARD", help="as ssh -R; see below")
    group.add_argument("--name", help="this client's name, as the server knows it; see below")
    group.add_argument("--token-file", type=Path, metavar="FILE", help="the token's file, which only you can read")
    group.add_argument(
        "--fingerprint", metavar="SHA256:...", help="the server's; otherwise trusted on first use, as ssh does"
    )
    group.add_argument(
        "--transport",
        action="append",
        default=[],
        metavar="NAMES",
        help="websocket (the default), http2, grpc or auto; several, with commas, are tried in turn",
    )
    group.add_argument(
        "--lanes", type=int, metavar="N", help="connections side by side, which streams are spread over (default: 1)"
    )
    group.add_argument("--ca-file", type=Path, metavar="FILE", help="authorities for TLS, PEM (default: the system's)")
    group.add_argument("--cert", type=Path, metavar="FILE", help="the client's own certificate for TLS, PEM")
    group.add_argument("--key", type=Path, metavar="FILE", help="its private key, PEM, which only you can read")
    group.add_argument(
        "--proxy", metavar="URL", help="http://, https:// or socks5h://[USER@]HOST:PORT, or `none`; see below"
    )
    group.add_argument("--proxy-password-file", type=Path, metavar="FILE", help="the password of the USER in --proxy")
    group.add_argument("--connect-to", metavar="HOST:PORT", help="connect there though the URL names another host")
    group.add_argument(
        "--header", action="append", default=[], metavar="NAME:VALUE", help="send this header too; may be repeated"
    )
    group.add_argument(
        "--header-file", action="append", default=[], metavar="NAME:FILE", help="the same, with the value in a file"
    )


def _add_daemon_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("logs and files; these override the configuration")
    group.add_argument("-v", "--verbose", action="store_true", help="log frames and other details")
    group.add_argument("--log-format", choices=("text", "json"), help="default: text")
    group.add_argument("--log-file", type=Path, metavar="FILE", help="default: stderr; SIGHUP opens it again")
    group.add_argument("--pid-file", type=Path, metavar="FILE", help="holds the process number while it runs")
