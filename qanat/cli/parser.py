"""Which commands there are, and a parser that loads a command when it was chosen.

So `token`, `check` and `--version` answer at once.  A command is a module of this package that has `add_arguments`,
`run`, which returns the exit code, and perhaps `DETAILS`, a text for the end of its help.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from qanat.base.redaction import hide_tokens
from qanat.base.version import __version__
from qanat.cli.output import write_out

COMMANDS = {
    "server": "run the end that accepts HTTP connections",
    "client": "run the end that dials, from a file or from a URL",
    "bench": "measure latency and throughput through the tunnel, beside the running client",
    "doctor": "find out what a path lets through, and which setting of which proxy to change",
    "service": "keep a configuration running: under systemd, supervisor or cron, at boot and after a crash",
    "reload": "have a running server or client read its configuration again",
    "revoke": "throw a client out of a running server, and keep its tokens out",
    "status": "show what runs here, who is connected and what moves; exit code for monitoring",
    "kick": "end a session or a stream of a running server or client",
    "log-level": "show or change how much a running server or client logs",
    "add": "add forwards to a running client, until it reloads or restarts",
    "remove": "take forwards out of a running client; open connections go on",
    "wait": "block until the running client of a configuration is connected",
    "init": "write a server's and a client's configuration that fit together, a token and a key",
    "token": "print a new token",
    "fingerprint": "print the fingerprint of the server's key; makes no key",
    "check": "say `ok`, or print every fault of a configuration file",
    "schema": "print a JSON Schema of configuration files, for editors",
    "demo": "run a whole tunnel on loopback and prove it by a request through it",
}
"""Each command's name, which is its module's with _ for -, and what it does."""

EXIT_CODES = """\
exit codes:
  0    done; a server or a client: stopped by SIGTERM or SIGINT
  1    failed while running
  2    bad usage or configuration
  3    refused by the other end (token, fingerprint) before this process ever succeeded
  130  Ctrl-C before it had begun; 128 + the signal's number: ended at once by a second one
"""

_TOKEN, _TOKEN_FILE = "--token", "--token-file"


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of the whole command line; `prog` is what it is called, by default as the user called it."""
    called = "python -m qanat" if os.path.basename(sys.argv[0]) == "__main__.py" else None
    parser = _Parser(
        prog=prog or called,
        description="Carries TCP and UDP through ordinary HTTP infrastructure, sealed end to end.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"qanat {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_CommandParser)
    for name, text in COMMANDS.items():
        commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    return parser


def command_parsers(prog: str) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command, with its module loaded, by the command's name: what manuals are made from."""
    (commands,) = (action.choices for action in build_parser(prog)._actions if isinstance(action.choices, dict))
    for parser in commands.values():
        parser.fill()
    return commands


def add_config(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add -c FILE."""
    parser.add_argument("-c", "--config", type=Path, metavar="FILE", required=required, help="the configuration, YAML")


def add_lock(parser: argparse.ArgumentParser) -> None:
    """Add --lock FILE."""
    parser.add_argument(
        "--lock", type=Path, metavar="FILE", help="exit at once and in silence when FILE is locked (cron)"
    )


class _Parser(argparse.ArgumentParser):
    """A parser that names what is nearest to a command or an option that it does not know, below its own usage."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(self._explain(unknown))
        return found, unknown

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is sys.stdout:  # help that was asked for, or the version
            write_out(message)
            return
        # As Pythons after Debian 12's do: where a refusal cannot be written, the exit code says it.
        with contextlib.suppress(OSError):
            super()._print_message(message, file)

    def _explain(self, unknown: list[str]) -> str:
        # What an option was given may be a token, so options are named alone.
        options = [text.partition("=")[0] for text in unknown if text.startswith("-")]
        if not options:
            return f"unrecognized arguments: {hide_tokens(' '.join(unknown))}"
        return "; ".join(f"unknown option {hide_tokens(option)}{self._near(option)}" for option in options)

    def _near(self, option: str) -> str:
        known = self._option_string_actions
        if option == _TOKEN and _TOKEN_FILE in known:
            return f"; did you mean `{_TOKEN_FILE}`? on a command line every user of the machine could read a token"
        if isinstance(self, _CommandParser):
            return _hint(option, known) or f"; see {self.prog} --help"
        return "; options stand behind the command"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.nargs == argparse.PARSER and action.choices is not None and value not in action.choices:
            near = _hint(value, action.choices) or f"; known are {', '.join(action.choices)}"
            raise argparse.ArgumentError(None, f"unknown command {hide_tokens(repr(value))}{near}")
        super()._check_value(action, value)


def _hint(word: str, words: Iterable[str]) -> str:
    from qanat.config.texts import did_you_mean  # loaded when there is a mistake alone

    near = did_you_mean(word, tuple(words))
    return f"; {near}" if near else ""


class _CommandParser(_Parser):
    """The parser of one command; its module is loaded when it has to parse."""

    _filled = False

    def fill(self) -> None:
        """Load the command's module and add what it takes, once."""
        if not self._filled:
            self._filled = True
            module: Any = importlib.import_module(f"qanat.cli.{self.prog.split()[-1].replace('-', '_')}")
            module.add_arguments(self)
            self.set_defaults(run=module.run)
            self.epilog = getattr(module, "DETAILS", "") + EXIT_CODES

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        self.fill()
        return super().parse_known_args(args, namespace)
