"""`init`: write a working pair of configurations, and say what to do with them."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from qanat.base.share import share
from qanat.cli.called import shown_command
from qanat.cli.init_files import DEFAULT_LISTEN, DEFAULT_PATH, Written, write_files
from qanat.cli.output import write_out
from qanat.config.command_line import DEFAULT_NAME


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    parser.add_argument("directory", nargs="?", type=Path, default=Path(), metavar="DIR", help="where (default: here)")
    parser.add_argument("--name", default=DEFAULT_NAME, help="the client's name (default: %(default)s)")
    parser.add_argument("--url", help=f"what the client dials (default: ws://{DEFAULT_LISTEN}{DEFAULT_PATH})")
    parser.add_argument(
        "--publish",
        action="append",
        default=[],
        metavar="NAME:PORT",
        help="publish the web service on this port of the client's by name, as app.example.com:3000",
    )
    parser.add_argument(
        "--listen",
        metavar="ADDRESS:PORT",
        help=f"where the server listens (default: the port of a ws:// URL that names it itself, else {DEFAULT_LISTEN})",
    )


def run(options: argparse.Namespace) -> int:
    """Write the files and print what to type next.  Raises UsageError when one is there already."""
    written = write_files(
        options.directory, name=options.name, url=options.url, listen=options.listen, publish=options.publish
    )
    program = shown_command()
    write_out(
        f"Wrote {written.server_yaml}, {written.client_yaml}, {written.token_file} and {written.identity}.\n"
        f"{_what_is_in_front(written)}"
        f"\nThe server needs {written.server_yaml.name}, {written.identity.name} and {written.token_file.name}; "
        f"the client needs {written.client_yaml.name} and {written.token_file.name}, so copy these two to it.\n"
        f"Start the server with\n  {program} server -c {shlex.quote(str(written.server_yaml))}\n"
        f"and the client, from where its files are, with\n  {program} client -c {written.client_yaml.name}\n"
        f"or have a service manager keep one running: {program} service install -c FILE\n"
        f"Then this goes through the tunnel:\n  curl http://{written.sample}/healthz\n"
        f"{_how_to_publish(written.publish_dir)}"
        f"\nEvery key is explained in {share('config.example.yaml')}; units for systemd and other samples are in "
        f"{share('deploy')}.\n"
    )
    return 0


def _what_is_in_front(written: Written) -> str:
    if written.nginx_block is None:
        return f"\nThe server listens on {written.listen}, and the client dials that port without a proxy.\n"
    return (
        f"\nThe server listens on {written.listen}.  Behind nginx (the whole file: {share('deploy', 'nginx.conf')}), "
        f"paste into its `server` block:\n\n{written.nginx_block}"
    )


def _how_to_publish(directory: Path | None) -> str:
    if directory is None:
        return ""
    return (
        f"\nWhat is published is a socket in {directory.absolute()}: put that, and your names, into a copy of "
        f"{share('deploy', 'published-nginx.conf')}.\n"
    )
