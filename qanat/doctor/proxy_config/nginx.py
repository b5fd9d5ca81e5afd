"""nginx: its blocks with their lines, and what in the location of the tunnel's path keeps a transport out.  Pure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from qanat.doctor.proxy_config.fault import (
    LEAST,
    Fault,
    Tunnel,
    indent_of,
    insert_after,
    remove,
    replace,
    rewritten,
    seconds,
)

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'|[{};]|#[^\n]*|(?:\\.|\$\{[^}\n]*\}|[^\s{};"\'])+|\n')
_TIMES = ("proxy_read_timeout", "proxy_send_timeout", "grpc_read_timeout", "grpc_send_timeout", "client_body_timeout")
_REPLACED = {
    *("listen", "proxy_pass", "grpc_pass", "proxy_http_version", "proxy_set_header", "proxy_ignore_headers"),
    *("client_max_body_size", "deny", "auth_basic", *_TIMES),
}
"""Directives whose lines an edit may change."""


@dataclass(slots=True)
class Directive:
    """A directive: its words, the lines of its first word and its end, and what is in its block."""

    words: list[str]
    line: int
    last: int
    block: list[Directive] | None = None
    parent: Directive | None = None

    @property
    def name(self) -> str:
        """The first word."""
        return self.words[0]

    def find(self, name: str) -> list[Directive]:
        """Return the directives of this name in the block."""
        return [one for one in self.block or [] if one.name == name]

    def inherited(self, name: str) -> list[Directive]:
        """Return those that count here: of the nearest block that has any (ngx_http_core_module)."""
        here: Directive | None = self
        while here is not None:
            if found := here.find(name):
                return found
            here = here.parent
        return []


def parse(text: str) -> Directive:
    """Return a root whose block is the file; what is not understood is passed over."""
    root = Directive(["main"], 0, 0, [])
    here, words, first, line = root, _Words(), 0, 1
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token == "\n":
            line += 1
        elif token.startswith("#"):
            continue
        elif token == ";":
            if words.found and here.block is not None:
                here.block.append(Directive(words.take(), first, line, None, here))
        elif token == "{":
            made = Directive(words.take() or [""], first or line, line, [], here)
            if here.block is not None:
                here.block.append(made)
            here = made
        elif token == "}":
            here.last = line
            here = here.parent or root
        else:
            if not words.found:
                first = line
            line += token.count("\n")
            words.found.append(token[1:-1] if token[0] in "\"'" and len(token) > 1 else token)
    return root


@dataclass(slots=True)
class _Words:
    found: list[str] = field(default_factory=list)

    def take(self) -> list[str]:
        taken, self.found = self.found, []
        return taken


def unfold(text: str, tunnel: Tunnel) -> str:
    """Return the text with one whole directive on each line that a patch may touch: an edit has whole lines."""
    text = _joined(text, tunnel)
    crowded = {line for one in _touched(text, tunnel) for line in range(one.line, one.last + 1)}
    made, done, line, depth = [], 0, 1, 0
    before: re.Match[str] | None = None
    for token in _TOKEN.finditer(text):
        if token[0] == "\n":
            before, line = None, line + 1
            continue
        if before is None:
            depth = int(token[0] == "}")  # a line that begins with its block's end stands as far left as that block
        depth -= token[0] == "}"
        splits = before is not None and (before[0] in ";{}" or token[0] == "}") and before[0] + token[0] != "{}"
        if splits and before is not None and line in crowded and not token[0].startswith("#"):
            made += [text[done : before.end()], "\n", _indented(text, before.start(), depth)]
            done = token.start()
        depth += token[0] == "{"
        before, line = token, line + token[0].count("\n")
    return "".join([*made, text[done:]])


def _joined(text: str, tunnel: Tunnel) -> str:
    """Return the text with each directive that a patch may replace on its first line; comments inside it are lost."""
    lines = text.split("\n")
    leaves = [leaf for one in _touched(text, tunnel) for leaf in _leaves(one) if leaf.name in _REPLACED]
    for one in sorted(leaves, key=lambda leaf: leaf.line, reverse=True):
        if one.last > one.line and not any("\n" in word for word in one.words):
            *before, last = lines[one.line - 1 : one.last]
            first, *more = map(_without_comment, before)
            lines[one.line - 1 : one.last] = [" ".join([first, *filter(None, map(str.strip, more)), last.lstrip()])]
    return "\n".join(lines)


def _touched(text: str, tunnel: Tunnel) -> Iterator[Directive]:
    """Yield what a patch may touch: the tunnel's locations, and where their servers listen."""
    for server in _concerned(parse(text), tunnel):
        location = _chosen(server, tunnel) or next(_passing(server), None)
        if location is not None:
            yield from (location, *server.find("listen"))


def _without_comment(line: str) -> str:
    """Return the line without a comment and what is white in front of it."""
    comment = next((token.start() for token in _TOKEN.finditer(line) if token[0].startswith("#")), len(line))
    return line[:comment].rstrip()


def _leaves(one: Directive) -> Iterator[Directive]:
    """Yield the directive itself if it has no block, else those inside that have none."""
    if one.block is None:
        yield one
    for inner in one.block or []:
        yield from _leaves(inner)


def _indented(text: str, at: int, depth: int) -> str:
    """Return the white space for what stands `depth` blocks deeper than the line around `at` begins."""
    indent = indent_of(text[text.rfind("\n", 0, at) + 1 : at + 1])
    step = "\t" if indent.startswith("\t") else "    "
    return indent + step * depth if depth >= 0 else indent[: len(step) * depth]


def _passing(server: Directive) -> Iterator[Directive]:
    """Yield the locations that lead to a server behind this one."""
    return filter(_passes, server.find("location"))


def looks_like(text: str) -> bool:
    """Return whether this may be nginx's."""
    return bool(re.search(r"^\s*(server|http|location[^{]*|upstream[^{]*)\s*\{", text, re.M)) and ";" in text


def faults(text: str, tunnel: Tunnel) -> Iterator[Fault]:
    """Yield what is wrong for the tunnel."""
    lines = text.split("\n")
    for server in _concerned(parse(text), tunnel):
        yield from _server(server, lines, tunnel)


def _concerned(root: Directive, tunnel: Tunnel) -> list[Directive]:
    """Return the servers of the tunnel: those that pass it on, or where none does or it was missed, all."""
    servers = list(_servers(root))
    passing = [one for one in servers if (location := _chosen(one, tunnel)) is not None and _passes(location)]
    return passing if passing and tunnel.found is not False else servers


def _chosen(server: Directive, tunnel: Tunnel) -> Directive | None:
    """Return the location of the tunnel; where nothing was measured also one that leads another path to it."""
    location = _location(server, tunnel.path)
    exact = [one for one in server.find("location") if one.words[1:2] == ["="]]
    if tunnel.found is None and location not in exact:
        for one in exact:
            if any(_behind_port(proxy_pass) == tunnel.path for proxy_pass in one.find("proxy_pass")):
                return one
    return location


def _passes(location: Directive) -> bool:
    """Return whether it leads to a server behind this one."""
    return bool(location.find("proxy_pass") or location.find("grpc_pass"))


def _servers(root: Directive) -> Iterator[Directive]:
    for one in root.block or []:
        if one.name == "server" and one.block is not None:
            yield one
        elif one.name == "http":
            yield from _servers(one)


def _server(server: Directive, lines: list[str], tunnel: Tunnel) -> Iterator[Fault]:
    path = tunnel.path
    location = _chosen(server, tunnel)
    if location is None:
        for other in itertools.islice(_passing(server), 1):
            yield _no_location(server, other, lines, path)
        return
    passes = location.find("proxy_pass")
    if not passes:
        grpc_passes = location.find("grpc_pass")
        if grpc_passes:
            yield from _grpc_alone(location, grpc_passes[0], lines)
        else:
            text = f"no proxy_pass in the location of {path}"
            yield Fault("wrong-path", location.line, text)
        return
    proxy_pass = passes[0]
    indent = indent_of(lines[proxy_pass.line - 1])
    yield from _uri(location, proxy_pass, lines, tunnel)
    yield from _upgrade(location, proxy_pass, indent)
    yield from _http2(server, location, proxy_pass, lines, indent)
    yield from _rest(location, proxy_pass, lines, indent)


def _grpc_alone(location: Directive, grpc_pass: Directive, lines: list[str]) -> Iterator[Fault]:
    """Yield that a WebSocket cannot pass, and put a proxy_pass in front of what takes HTTP/2."""
    indent = indent_of(lines[grpc_pass.line - 1])
    scheme, _, address = grpc_pass.words[1].rpartition("://")
    changed = (
        f"{indent}proxy_pass {'https' if scheme == 'grpcs' else 'http'}://{address};",
        f'{indent}if ($server_protocol = "HTTP/2.0") {{',
        f"{indent}    grpc_pass {grpc_pass.words[1]};",
        f"{indent}}}",
    )
    text = "grpc_pass alone takes no WebSocket: what comes over HTTP/1.1 needs proxy_pass"
    yield Fault("upgrade-dropped", grpc_pass.line, text, replace(grpc_pass.line, *changed))


def _location(server: Directive, path: str) -> Directive | None:
    """Return the location that serves `path`, as nginx chooses it."""
    best: tuple[int, Directive] | None = None
    for one in server.find("location"):
        words = one.words[1:]
        kind, what = (words[0], words[1]) if len(words) == 2 else ("", words[0] if words else "")
        rank = -1
        if kind == "=":
            rank = 10_000 if what == path else -1
        elif kind in ("~", "~*"):
            try:
                rank = 5000 if re.search(what, path, re.I if kind == "~*" else 0) else -1
            except re.error:
                rank = -1
        elif path.startswith(what):
            rank = len(what) + (6000 if kind == "^~" else 0)
        if rank >= 0 and (best is None or rank > best[0]):
            best = rank, one
    return best[1] if best is not None else None


def _no_location(server: Directive, other: Directive, lines: list[str], path: str) -> Fault:
    passes = (other.find("proxy_pass") or other.find("grpc_pass"))[0]
    backend = _backend(passes.words[1])
    indent = indent_of(lines[other.line - 1])
    added = (f"{indent}location = {path} {{", f"{indent}    proxy_pass http://{backend};", f"{indent}}}")
    text = f"no location serves {path}"
    return Fault("wrong-path", server.line, text, insert_after(other.last, *added))


def _backend(url: str) -> str:
    return url.partition("://")[2].partition("/")[0]


def _behind_port(proxy_pass: Directive) -> str:
    """Return the path behind the port, which replaces what the location has matched; "" if there is none."""
    _, _, after = proxy_pass.words[1].partition("://")
    _, slash, rest = after.partition("/")
    return slash + rest if "$" not in after else ""


def _uri(location: Directive, proxy_pass: Directive, lines: list[str], tunnel: Tunnel) -> Iterator[Fault]:
    """Yield a path behind the port, if it may lead past the tunnel."""
    uri, path, line = _behind_port(proxy_pass), tunnel.path, lines[proxy_pass.line - 1]
    matched = location.words[-1]
    made = uri + path[len(matched) :] if path.startswith(matched) else path
    if uri and made != path:
        host = _backend(proxy_pass.words[1])
        edits = replace(proxy_pass.line, line.replace(host + uri, host))
        text = f"the path behind the port makes {path} into {made}"
        yield from rewritten(tunnel, proxy_pass.line, text, edits, only_stripped=uri == "/")


def _upgrade(location: Directive, proxy_pass: Directive, indent: str) -> Iterator[Fault]:
    version = location.inherited("proxy_http_version")
    added = []
    here = location.find("proxy_set_header")
    headers = {one.words[1].lower(): one for one in location.inherited("proxy_set_header") if len(one.words) > 2}
    edits: list[tuple[int, str]] = []
    if not version:
        added.append("proxy_http_version 1.1;")
    elif version[-1].words[1] != "1.1":
        if version[-1].parent is location:
            edits.append((version[-1].line, "proxy_http_version 1.1;"))
        else:
            added.append("proxy_http_version 1.1;")
    for name, value, needed in (("Upgrade", "$http_upgrade", "$http_upgrade"), ("Connection", '"upgrade"', "upgrade")):
        known = headers.get(name.lower())
        wanted = f"proxy_set_header {name} {value};"
        if known is None:
            added.append(wanted)
        elif needed not in known.words[2].lower():
            if known.parent is location:
                edits.append((known.line, wanted))
            else:
                added.append(wanted)
    if not added and not edits:
        return
    if not here and any(line.startswith("proxy_set_header") for line in added):
        # What is set here hides what was inherited.
        inherited = [one for one in headers.values() if one.words[1].lower() not in ("upgrade", "connection")]
        added += [f"proxy_set_header {one.words[1]} {_quoted(one.words[2])};" for one in inherited]
    changes = insert_after(proxy_pass.last, *(indent + line for line in added)) if added else ()
    for line, content in edits:
        changes += replace(line, indent + content)
    yield Fault("upgrade-dropped", proxy_pass.line, "Upgrade and Connection are not passed on over HTTP/1.1", changes)


def _quoted(text: str) -> str:
    return f'"{text}"' if not text or re.search(r"[\s;{}]", text) else text


def _http2(
    server: Directive, location: Directive, proxy_pass: Directive, lines: list[str], indent: str
) -> Iterator[Fault]:
    switched_on = any(one.words[1:] == ["on"] for one in server.inherited("http2"))
    listens = [one for one in server.find("listen") if "ssl" in one.words]
    for one in listens:
        if "http2" not in one.words and not switched_on:
            line = lines[one.line - 1]
            changed = re.sub(r"(\blisten\b[^;]*?)\s*;", r"\1 http2;", line, count=1)
            yield Fault("http2-off", one.line, "`listen` has ssl and not http2", replace(one.line, changed))
    if not listens:
        return  # TLS ends elsewhere, and so does HTTP/2, as a rule
    conditional = [one for inner in location.find("if") for one in inner.find("grpc_pass")]
    if location.find("grpc_pass") or conditional:
        return
    scheme = "grpcs" if proxy_pass.words[1].startswith("https:") else "grpc"
    added = (
        f'{indent}if ($server_protocol = "HTTP/2.0") {{',
        *(f"{indent}    {line}" for line in _rewrite(location, proxy_pass)),
        f"{indent}    grpc_pass {scheme}://{_backend(proxy_pass.words[1])};",
        f"{indent}}}",
    )
    text = "only grpc_pass speaks HTTP/2 to the server, and http2 and grpc need that"
    yield Fault("http2-not-to-server", proxy_pass.line, text, insert_after(location.last - 1, *added))


def _rewrite(location: Directive, proxy_pass: Directive) -> Iterator[str]:
    """Yield what does for grpc_pass, which takes no path behind its port, as that of proxy_pass does."""
    uri, matched = _behind_port(proxy_pass), location.words[-1]
    if uri and uri != matched:
        exact = location.words[1] == "="
        yield f"rewrite ^ {uri} break;" if exact else f'rewrite "^{re.escape(matched)}(.*)$" "{uri}$1" break;'


def _rest(location: Directive, proxy_pass: Directive, lines: list[str], indent: str) -> Iterator[Fault]:
    size = location.inherited("client_max_body_size")
    if not size or size[-1].words[1] != "0":
        what = size[-1].words[1] if size else "1m by default"
        text = f"client_max_body_size is {what}: http2 and grpc are cut each time so much has gone up"
        yield _set(location, proxy_pass, "body-limit", "client_max_body_size", "0", text, indent, size)
    for name in _TIMES:
        found = location.inherited(name)
        if found and (value := seconds(found[-1].words[1])) is not None and value < LEAST:
            text = f"{name} is {found[-1].words[1]}, and Qanat says something every 15 s"
            yield _set(location, proxy_pass, "idle-cut", name, "300s", text, indent, found)
    for one in location.inherited("proxy_ignore_headers"):
        if any(word.lower() == "x-accel-buffering" for word in one.words) and one.parent is location:
            text = "X-Accel-Buffering is ignored, so answers are held back"
            yield Fault("answer-held", one.line, text, remove(one.line, one.last - one.line + 1))
    for one in location.find("deny"):
        yield Fault("forbidden", one.line, f"deny {' '.join(one.words[1:])}", remove(one.line))
    basic = location.inherited("auth_basic")
    if basic and basic[-1].words[1] != "off":
        text = "a login is wanted, which a tunnel does not give"
        yield _set(location, proxy_pass, "login-wanted", "auth_basic", "off", text, indent, basic)


def _set(
    location: Directive,
    proxy_pass: Directive,
    code: str,
    name: str,
    value: str,
    text: str,
    indent: str,
    found: list[Directive],
) -> Fault:
    line = f"{indent}{name} {value};"
    if found and found[-1].parent is location:
        return Fault(code, found[-1].line, text, replace(found[-1].line, line))
    at = found[-1].line if found else proxy_pass.line
    return Fault(code, at, text, insert_after(proxy_pass.last, line))
