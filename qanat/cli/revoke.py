"""`revoke`: throw a client out of a running server at once, and keep its tokens out for good."""

from __future__ import annotations

import argparse

from qanat.base.errors import QanatError
from qanat.base.text import printable
from qanat.cli.main import DONE
from qanat.cli.output import write_out
from qanat.cli.target import FINDING, add_target, ask_one

DETAILS = (
    """\
The client's sessions end within the second, streams and listeners with them, and so do sessions that wait for it to
come back.  Its tokens are refused from then on, by every server that keeps its state in the same state_dir, also
after a restart and whatever the configuration says: the list is state_dir/revoked-tokens.json.  To let the client in
again, give it a new token in the configuration and reload.  The exit code is 1 where the list could not be written,
so that the revocation ends with the process.

"""
    + FINDING
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    add_target(parser)
    parser.add_argument("name", metavar="NAME", help="the client's name")
    parser.add_argument(
        "--token", default="", metavar="FINGERPRINT", help="revoke this one of its tokens, as the audit log names it"
    )
    parser.add_argument("--undo", action="store_true", help="have the client's revoked tokens count again")


def run(options: argparse.Namespace) -> int:
    """Revoke, and print what that ended.  Blocks.  Raises QanatError."""
    more = {"token": options.token} if options.token else {}
    answer = ask_one(options, "revoke", role="server", client=options.name, undo=options.undo, **more)
    tokens = ", ".join(printable(str(token)) for token in answer.get("tokens", []))
    ended = answer.get("ended", [])
    write_out(f"{'count again' if options.undo else 'revoked'}: {tokens}\n")
    for line in ended:
        write_out(f"{printable(str(line))}\n")
    if not ended and not options.undo:
        write_out(f"the client {printable(options.name)} had no session\n")
    if not answer.get("lasting"):
        raise QanatError(
            f"this holds until the server ends, and not longer: {printable(str(answer.get('problem', '')))}",
            hint=f"take {options.name} out of the configuration, or let the server write its state_dir and ask again",
        )
    return DONE
