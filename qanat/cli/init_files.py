"""The files that `init` writes: two configurations that fit together, a token and the server's key.

With the defaults, `server -c server.yaml` and `client -c client.yaml` simply connect.  The nginx
block is cut from deploy/nginx.conf, so that what is printed is what the tests run.  Not
here: printing, and what the keys mean (config.example.yaml).  `qanat.cli.init` calls this.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qanat.base.addresses import is_loopback, parse_address, parse_listen
from qanat.base.errors import UsageError
from qanat.base.private_files import write_new
from qanat.base.share import share
from qanat.base.sockets import format_address
from qanat.base.text import NAME
from qanat.config.forwards import parse_publishes
from qanat.config.options import option_of
from qanat.config.schema import schema_location
from qanat.config.server_settings import ServerSettings
from qanat.handshake.identity import load_or_create_identity
from qanat.handshake.tokens import generate_token
from qanat.transports.dial.urls import TunnelUrl

_PATH = re.compile(r"/[A-Za-z0-9/._~-]*")
_SAMPLE_PORT = 18080
_WEB_PORT = 80

DEFAULT_LISTEN = format_address(option_of(ServerSettings, "listen").default[0])
DEFAULT_PATH: str = option_of(ServerSettings, "path").default

_SERVER = """\
{schema}# The server's end of the tunnel.  Every key is explained in config.example.yaml.
server:
  listen: {listen}
  path: {path}
  identity: server.key                  # its private key; never leaves this machine
{trusted_proxies}\
{publish_dir}\
  clients:
    - name: {name}
      token_file: {token_file}
      # What the client's `local` forwards may reach from here; nothing else is.
      allow_connect: [{health}]
      # Where the client's `remote` forwards may listen here.
      # allow_listen: ["127.0.0.1:8080"]
{allow_publish}"""

_PUBLISH_DIR = """\
  publish_dir: published                # a socket for each name that the client publishes, for the proxy
  publish_mode: "0666"                  # or 0660, with publish_group: the proxy's group
"""

_TRUSTED_PROXIES = """\
  trusted_proxies: ["127.0.0.1/32", "::1/128"]  # nginx on this machine: it says who is calling
"""

_CLIENT = """\
{schema}# The client's end of the tunnel.  Every key is explained in config.example.yaml.
client:
  name: {name}
  url: {url}
  token_file: {token_file}
  server_fingerprint: {fingerprint}
  forwards:
    # As ssh -L: listens here, connects from the server.  This one reaches the server's own health page:
    #   curl http://{sample}/healthz
    - {{local: "{sample}", to: {health}}}
    # As ssh -R: listens on the server, where allow_listen must name the address, and connects from here.
    # - {{remote: "127.0.0.1:8080", to: "127.0.0.1:80"}}
{publish}"""


@dataclass(frozen=True, slots=True)
class Written:
    """What `write_files` has made, and what to tell the user about it."""

    server_yaml: Path
    client_yaml: Path
    token_file: Path
    identity: Path
    fingerprint: str
    sample: str  # HOST:PORT where the sample forward will listen
    publish_dir: Path | None
    """Where published names are, if any is."""
    nginx_block: str | None
    """None where the client dials the server itself."""
    listen: str


def write_files(
    directory: Path, *, name: str, url: str | None, listen: str | None, publish: Sequence[str] = ()
) -> Written:
    """Write server.yaml, client.yaml, NAME.token and server.key into `directory`; make it when missing.

    Without `url` the client dials `listen` directly.  Without `listen` the server listens at the URL's port where no
    proxy can be in front (see `_listen_for`), else at DEFAULT_LISTEN.  `publish` are as for the client's flag of that
    name.  Raises UsageError, and leaves nothing behind, when a file is there already, cannot be written, or a value
    cannot work.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"not a client name: {name!r}", hint="use 1 to 64 of A-Z a-z 0-9 . _ -")
    dialed = TunnelUrl.parse(url) if url else None
    host, port = _parse_listen(listen or _listen_for(dialed) or DEFAULT_LISTEN)
    forwards = parse_publishes(publish)
    names = json.dumps([str(forward.listen) for forward in forwards])
    direct = format_address((_reachable(host), port))
    sample = f"127.0.0.1:{_SAMPLE_PORT if port != _SAMPLE_PORT else _SAMPLE_PORT + 1}"
    url = url or f"ws://{direct}{DEFAULT_PATH}"
    path = dialed.path if dialed is not None else DEFAULT_PATH
    has_proxy = dialed is None or _listen_for(dialed) is None or dialed.port != port
    if not _PATH.fullmatch(path):
        raise UsageError(f"the path {path} in the URL needs quoting in nginx", hint="use letters, digits and / . _ ~ -")

    server_yaml, client_yaml = directory / "server.yaml", directory / "client.yaml"
    token_file, identity_file = directory / f"{name}.token", directory / "server.key"
    _refuse_existing(server_yaml, client_yaml, token_file, identity_file)
    schema = f"# yaml-language-server: $schema={schema_location()}\n"
    with _undone_on_failure() as made:
        directory.mkdir(parents=True, exist_ok=True)
        made.append(identity_file)
        fingerprint = load_or_create_identity(identity_file).fingerprint
        if not write_new(token_file, f"{generate_token()}\n".encode()):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(token_file))
        made.append(token_file)
        server = _SERVER.format(
            schema=schema,
            listen=_quoted(format_address((host, port))),
            path=_quoted(path),
            trusted_proxies=_TRUSTED_PROXIES if has_proxy and is_loopback(host) else "",
            name=_quoted(name),
            token_file=_quoted(token_file.name),
            health=_quoted(direct),
            publish_dir=_PUBLISH_DIR if forwards else "",
            allow_publish=f"      # What it may publish by name.\n      allow_publish: {names}\n" if forwards else "",
        )
        _write(made, server_yaml, server)
        client = _CLIENT.format(
            schema=schema,
            name=_quoted(name),
            url=_quoted(url),
            token_file=_quoted(token_file.name),
            fingerprint=_quoted(fingerprint),
            sample=sample,
            health=_quoted(direct),
            publish="".join(
                f"    - {{publish: {_quoted(str(forward.listen))}, to: {_quoted(str(forward.to))}}}\n"
                for forward in forwards
            ),
        )
        _write(made, client_yaml, client)
    return Written(
        server_yaml,
        client_yaml,
        token_file,
        identity_file,
        fingerprint,
        sample,
        directory / "published" if forwards else None,
        nginx_block(path=path, upstream=direct) if has_proxy else None,
        format_address((host, port)),
    )


def nginx_block(*, path: str, upstream: str) -> str:
    """Return the `location` of deploy/nginx.conf for this path and this HOST:PORT of the server."""
    whole = share("deploy", "nginx.conf").read_text("utf-8")
    _, _, rest = whole.partition("# The tunnel: from here\n")
    block, _, _ = rest.partition("    # The tunnel: to here")
    return block.replace("location = /tunnel {", f"location = {path} {{").replace("127.0.0.1:8443", upstream)


def _listen_for(url: TunnelUrl | None) -> str | None:
    """Return where the server that `url` names itself has to listen; None where a proxy in front of it is named.

    That is ws:// to this machine, or with a port of its own: TLS, and the port of the web, are a proxy's.
    """
    if url is None or url.tls:
        return None
    host = "127.0.0.1" if url.host == "localhost" else url.host
    if is_loopback(host):
        return format_address((host, url.port))
    if url.port == _WEB_PORT:
        return None
    address = parse_address(host)
    return format_address(("::" if address is not None and address.version == 6 else "0.0.0.0", url.port))


def _parse_listen(listen: str) -> tuple[str, int]:
    try:
        host, port = parse_listen(listen)
    except UsageError as error:
        raise UsageError(f"--listen {listen} {error.message}", hint=error.hint) from error
    if port == 0:
        raise UsageError("--listen needs a port that the client can know", hint="choose one from 1 to 65535")
    return host, port


def _reachable(host: str) -> str:
    """Return an address by which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _quoted(text: str) -> str:
    """`text` as a YAML string, whatever it looks like: a client may well be called `no` or `007`."""
    return json.dumps(text, ensure_ascii=False)


def _refuse_existing(*paths: Path) -> None:
    existing = [str(path) for path in paths if os.path.lexists(path)]
    if existing:
        raise UsageError(
            f"already there, and not overwritten: {', '.join(existing)}",
            hint="move them away, or name another directory: init DIR",
        )


@contextlib.contextmanager
def _undone_on_failure() -> Iterator[list[Path]]:
    """Remove the files that the caller put into the list, unless all went well."""
    made: list[Path] = []
    try:
        yield made
    except BaseException as error:
        for path in made:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UsageError(
                f"cannot write {error.filename}: {error.strerror}", hint="name another directory"
            ) from error
        raise


def _write(made: list[Path], path: Path, text: str) -> None:
    with open(path, "x", encoding="utf-8") as file:
        made.append(path)
        file.write(text)
