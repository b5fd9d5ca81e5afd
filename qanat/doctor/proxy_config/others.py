"""HAProxy, Apache, nghttpx and Squid: files of lines, one setting each.  Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from dataclasses import replace as replace_fields

from qanat.doctor.proxy_config.fault import (
    LEAST,
    Edit,
    Fault,
    Tunnel,
    indent_of,
    insert_after,
    remove,
    replace,
    seconds,
)


@dataclass(frozen=True, slots=True)
class Line:
    """A line with something in it."""

    number: int
    text: str
    words: tuple[str, ...]
    section: tuple[str, ...] = ()
    """The words of the section that it is in."""

    @property
    def name(self) -> str:
        """The first word, in lower case."""
        return self.words[0].lower()

    @property
    def indent(self) -> str:
        """White space at its beginning."""
        return indent_of(self.text)

    def says(self, *words: str) -> bool:
        """Return whether it begins with these words, whatever their case."""
        return tuple(word.lower() for word in self.words[: len(words)]) == words


def _read(text: str, sections: Callable[[tuple[str, ...]], bool] = lambda words: False) -> list[Line]:
    found: list[Line] = []
    section: tuple[str, ...] = ()
    for number, line in enumerate(text.split("\n"), start=1):
        words = tuple(re.sub(r"(^|\s)#.*", "", line).split())
        if not words:
            continue
        if sections(words):
            section = words
        found.append(Line(number, line, words, section))
    return found


# --- HAProxy ---------------------------------------------------------------------------------------

_HAPROXY_SECTIONS = ("global", "defaults", "frontend", "backend", "listen", "peers", "resolvers", "userlist", "cache")


def haproxy_looks_like(text: str) -> bool:
    """Return whether this may be HAProxy's."""
    return bool(re.search(r"^(frontend|backend|listen|defaults)\b", text, re.M)) and bool(
        re.search(r"^\s+(bind|server|mode|timeout)\s", text, re.M)
    )


def haproxy(text: str, tunnel: Tunnel) -> Iterator[Fault]:
    """Yield what is wrong for the tunnel."""
    path = tunnel.path
    lines = _read(text, lambda words: words[0] in _HAPROXY_SECTIONS)
    serving = {line.words[1] for line in lines if line.name == "use_backend" and _haproxy_names(line, path)}
    for line in lines:
        if line.name == "bind" and "ssl" in line.words:
            yield from _haproxy_bind(line)
        elif line.name == "server" and (
            not serving or serving & set(line.section[1:]) or line.section[:1] != ("backend",)
        ):
            yield from _haproxy_server(line)
        elif line.says("option", "http-buffer-request"):
            yield Fault("request-held", line.number, "requests are held until they are whole", remove(line.number))
        elif line.name in ("http-request", "http-response") and len(line.words) > 1:
            yield from _haproxy_rule(line, path)
        elif line.name == "timeout" and len(line.words) > 2 and line.words[1] in ("client", "server", "tunnel"):
            value = seconds(line.words[2], "ms")
            if value is not None and value < LEAST:
                better = "1h" if line.words[1] == "tunnel" else "5m"
                what = f"timeout {line.words[1]} is {line.words[2]}, and Qanat says something every 15 s"
                edits = replace(line.number, f"{line.indent}timeout {line.words[1]} {better}")
                yield Fault("idle-cut", line.number, what, edits)
        elif line.name == "tune.bufsize" and line.words[1:] and int(line.words[1]) < 16_384:
            what = "tune.bufsize below 16384 announces a frame size that HTTP/2 forbids"
            yield Fault("http2-off", line.number, what, remove(line.number))
        elif line.name == "tune.h2.max-concurrent-streams" and line.words[1:] == ("1",):
            edits = replace(line.number, f"{line.indent}tune.h2.max-concurrent-streams 100")
            yield Fault("one-at-a-time", line.number, "one request at a time for each connection", edits)
    yield from _haproxy_routes(lines, path)


def _haproxy_bind(line: Line) -> Iterator[Fault]:
    alpn = line.words[line.words.index("alpn") + 1] if "alpn" in line.words[:-1] else ""
    if not alpn:
        edits = replace(line.number, f"{line.text.rstrip()} alpn h2,http/1.1")
        yield Fault("http2-off", line.number, "`bind` offers no h2", edits)
    elif "h2" not in alpn.split(","):
        edits = replace(line.number, line.text.replace(f"alpn {alpn}", "alpn h2,http/1.1"))
        yield Fault("http2-off", line.number, "`bind` offers no h2", edits)
    elif "http/1.1" not in alpn.split(","):
        edits = replace(line.number, line.text.replace(f"alpn {alpn}", "alpn h2,http/1.1"))
        yield Fault("http1-off", line.number, "`bind` offers no http/1.1, which WebSocket needs", edits)


def _haproxy_server(line: Line) -> Iterator[Fault]:
    pairs = dict(zip(line.words, line.words[1:], strict=False))
    speaks_h2 = pairs.get("proto") == "h2" or "h2" in pairs.get("alpn", "").split(",")
    if not speaks_h2:
        what = "HTTP/1 is spoken to the server, and http2 and grpc need HTTP/2 there"
        edits = replace(line.number, f"{line.text.rstrip()} proto h2 ws h1")
        yield Fault("http2-not-to-server", line.number, what, edits)
    elif pairs.get("proto") == "h2" and pairs.get("ws") != "h1":
        if "ws" in pairs:
            changed = line.text.replace(f"ws {pairs['ws']}", "ws h1")
        else:
            changed = f"{line.text.rstrip()} ws h1"
        what = "WebSockets go to the server over HTTP/2 too: keep them on HTTP/1.1"
        yield Fault("upgrade-dropped", line.number, what, replace(line.number, changed))


def _haproxy_rule(line: Line, path: str) -> Iterator[Fault]:
    text = line.text.lower()
    if line.words[1] == "del-header" and any(name in text for name in ("upgrade", "connection")):
        yield Fault("upgrade-dropped", line.number, "it takes a header of the Upgrade away", remove(line.number))
    elif line.words[1] in ("deny", "reject", "tarpit", "return"):
        if "grpc" in text:
            yield Fault("grpc-refused", line.number, "gRPC is refused", remove(line.number))
        elif "body_size" in text or "content-length" in text:
            yield Fault("body-limit", line.number, "large bodies are refused", remove(line.number))
        elif "upgrade" in text or "websocket" in text:
            yield Fault("upgrade-dropped", line.number, "WebSockets are refused", remove(line.number))
        elif path in text:
            yield Fault("forbidden", line.number, f"{path} is refused", remove(line.number))


def _haproxy_routes(lines: list[Line], path: str) -> Iterator[Fault]:
    for front in {line.section for line in lines if line.section and line.section[0] == "frontend"}:
        inside = [line for line in lines if line.section == front]
        routes = [line for line in inside if line.name == "use_backend"]
        if not routes or any(line.name == "default_backend" for line in inside):
            continue
        paths = [line for line in routes if re.search(r"\bpath(_beg|_reg|_dir)?\b", line.text)]
        if len(paths) == len(routes) and not any(_haproxy_leads(line, path) for line in paths):
            line = paths[0]
            added = f"{line.indent}use_backend {line.words[1]} if {{ path {path} }}"
            yield Fault("wrong-path", line.number, f"no use_backend serves {path}", insert_after(line.number, added))


def _haproxy_names(line: Line, path: str) -> bool:
    """Return whether this is the route of exactly this path."""
    match = re.search(r"\{\s*path\s+(\S+)\s*\}\s*$", line.text)
    return match is not None and match[1] == path


def _haproxy_leads(line: Line, path: str) -> bool:
    match = re.search(r"\bpath(_beg|_reg|_dir)?\s+(?:-\w+\s+)*(\S+)", line.text)
    if match is None:
        return True
    kind, what = match[1], match[2]
    return kind in ("_reg", "_dir") or (path.startswith(what) if kind == "_beg" else path == what)


# --- Apache ----------------------------------------------------------------------------------------


def apache_looks_like(text: str) -> bool:
    """Return whether this may be Apache's."""
    return bool(re.search(r"^\s*(<VirtualHost|ProxyPass|RewriteRule|SSLEngine|ServerName)\b", text, re.M | re.I))


def apache(text: str, tunnel: Tunnel) -> Iterator[Fault]:
    """Yield what is wrong for the tunnel."""
    path = tunnel.path
    lines = _read(text, lambda words: words[0].lower().startswith(("<location", "</location")))
    passes = [_located(line) for line in lines if line.name == "proxypass" and len(line.words) > 1]
    passes = [line for line in passes if len(line.words) > 2]
    serving = next((line for line in passes if path.startswith(line.words[1].rstrip("/") or "/")), None)
    if serving is None:
        if passes:
            line = passes[0]
            host = re.sub(r"^\w+://", "", line.words[2]).partition("/")[0]
            added = f"{line.indent}ProxyPass {path} h2c://{host}{path}"
            yield Fault("wrong-path", line.number, f"no ProxyPass serves {path}", (Edit(line.number, (added,), 0),))
        return
    yield from _apache_pass(lines, serving, path)
    start = next((line for line in lines if line.name.startswith("<virtualhost")), serving)
    inside = _apache_place(lines, serving).indent
    has_tls = any(line.says("sslengine", "on") for line in lines)
    protocols = [line for line in lines if line.name == "protocols"]
    if has_tls and not protocols:
        edits = insert_after(start.number, f"{inside}Protocols h2 http/1.1")
        yield Fault("http2-off", start.number, "no Protocols h2", edits)
    for line in protocols:
        offered = [word.lower() for word in line.words[1:]]
        if has_tls and "h2" not in offered:
            edits = replace(line.number, f"{line.indent}Protocols h2 http/1.1")
            yield Fault("http2-off", line.number, "Protocols has no h2", edits)
        elif "http/1.1" not in offered:
            edits = replace(line.number, f"{line.text.rstrip()} http/1.1")
            yield Fault("http1-off", line.number, "Protocols has no http/1.1, which WebSocket needs", edits)
    yield from _apache_limits(lines, serving)


def _located(line: Line) -> Line:
    """Return a ProxyPass with the path that it has from its <Location>, if it is in one."""
    if "://" in line.words[1] and line.section[:1] and line.section[0].lower() == "<location":
        return replace_fields(line, words=(line.words[0], line.section[1].strip('">'), *line.words[1:]))
    return line


def _apache_place(lines: list[Line], serving: Line) -> Line:
    """Return the line in front of which stands what a <Location> may not have."""
    if not serving.section[:1] or serving.section[0].lower() != "<location":
        return serving
    return next(line for line in reversed(lines) if line.number < serving.number and line.words == serving.section)


def _apache_pass(lines: list[Line], serving: Line, path: str) -> Iterator[Fault]:
    place = _apache_place(lines, serving)
    scheme, _, rest = serving.words[2].partition("://")
    host, slash, behind = rest.partition("/")
    made = slash + behind + path[len(serving.words[1]) :]
    upgrades = any(word.lower().startswith("upgrade=") for word in serving.words[3:])
    rewrites = any(line.name == "rewriterule" and re.search(r"\bwss?://", line.text) for line in lines) or any(
        line.name == "proxypass" and line.words[-1].startswith(("ws://", "wss://")) for line in lines
    )
    if not rewrites and not (upgrades and scheme.lower() in ("http", "https")):
        added = (
            f"{place.indent}RewriteEngine on",
            f"{place.indent}RewriteCond %{{HTTP:Upgrade}} =websocket [NC]",
            f"{place.indent}RewriteRule ^{re.escape(path)}$ ws://{host}{made} [P]",
        )
        text = "a WebSocket's Upgrade is not passed on"
        yield Fault("upgrade-dropped", serving.number, text, (Edit(place.number, added, 0),))
    if scheme.lower() in ("http", "https"):
        better = {"http": "h2c", "https": "h2"}[scheme.lower()]
        target = f"{better}://{rest}"
        # Options such as `upgrade=` and `retry=` are HTTP/1.1's.
        changed = " ".join(["ProxyPass", *([] if place is not serving else [serving.words[1]]), target])
        text = "http:// holds an open request back: HTTP/2 has to be spoken to the server"
        yield Fault("request-held", serving.number, text, replace(serving.number, serving.indent + changed))


def _apache_limits(lines: list[Line], serving: Line) -> Iterator[Fault]:
    bodies = [line for line in lines if line.name == "requestreadtimeout" and "body=" in line.text]
    if not any("body=0" in line.words for line in bodies):
        text = "mod_reqtimeout cuts an idle upload after 11 s (Debian) or 20 s"
        if bodies:
            edits = replace(bodies[-1].number, f"{bodies[-1].indent}RequestReadTimeout body=0")
        else:
            place = _apache_place(lines, serving)
            added = (f"{place.indent}RequestReadTimeout body=0",)
            edits = (Edit(serving.number + 1 if place is serving else place.number, added, 0),)
        yield Fault("idle-cut", bodies[-1].number if bodies else serving.number, text, edits)
    for line in lines:
        if line.name == "limitrequestbody" and line.words[1:] not in ((), ("0",)):
            edits = replace(line.number, f"{line.indent}LimitRequestBody 0")
            yield Fault("body-limit", line.number, f"bodies above {line.words[1]} bytes are refused", edits)
        elif line.name in ("timeout", "proxytimeout") and len(line.words) > 1:
            value = seconds(line.words[1])
            if value is not None and value < LEAST:
                edits = replace(line.number, f"{line.indent}{line.words[0]} 300")
                yield Fault("idle-cut", line.number, f"{line.words[0]} is {line.words[1]} s", edits)
        elif line.says("require", "all", "denied"):
            edits = replace(line.number, f"{line.indent}Require all granted")
            yield Fault("forbidden", line.number, "nobody is let in", edits)


# --- nghttpx ---------------------------------------------------------------------------------------


def nghttpx_looks_like(text: str) -> bool:
    """Return whether this may be nghttpx's."""
    return bool(re.search(r"^\s*(frontend|backend)\s*=", text, re.M))


def nghttpx(text: str, tunnel: Tunnel) -> Iterator[Fault]:
    """Yield what is wrong for the tunnel."""
    path = tunnel.path
    is_named = any(_nghttpx_names(line, path) for line in text.split("\n"))
    for number, line in enumerate(text.split("\n"), start=1):
        key, separator, value = line.partition("=")
        key, value = key.strip(), value.strip()
        if not separator or key.startswith("#"):
            continue
        if key.endswith("-timeout") and key.partition("-")[0] in ("backend", "stream", "frontend"):
            time = seconds(value)
            if time is not None and time < LEAST and "connect" not in key and "keep-alive" not in key:
                yield Fault("idle-cut", number, f"{key} is {value}", replace(number, f"{key}=5m"))
        elif key in ("npn-list", "alpn-list") and "h2" not in value.split(","):
            yield Fault("http2-off", number, f"{key} has no h2", replace(number, f"{key}=h2,http/1.1"))
        elif key in ("npn-list", "alpn-list") and "http/1.1" not in value.split(","):
            yield Fault("http1-off", number, f"{key} has no http/1.1", replace(number, f"{key}=h2,http/1.1"))
        elif key == "frontend-http2-max-concurrent-streams" and value == "1":
            yield Fault("one-at-a-time", number, "one request at a time", replace(number, f"{key}=100"))
        elif key == "backend" and (not is_named or _nghttpx_names(line, path)):
            parts = value.split(";")
            patterns = parts[1] if len(parts) > 1 else ""
            if not any(part.startswith("proto=") for part in parts[2:]):
                changed = ";".join([parts[0], patterns, *parts[2:], "proto=h2"])
                text_of = "HTTP/1.1 is spoken to the server unless proto says otherwise, and http2 and grpc need HTTP/2"
                yield Fault("http2-not-to-server", number, text_of, replace(number, f"backend={changed}"))
            elif patterns and not any(_nghttpx_leads(one, path) for one in patterns.split(":")):
                changed = ";".join([parts[0], path, *parts[2:]])
                text_of = f"this backend does not serve {path}"
                yield Fault("wrong-path", number, text_of, replace(number, f"backend={changed}"))


def _nghttpx_names(line: str, path: str) -> bool:
    """Return whether this is the backend of exactly this path; others are of other sites then."""
    key, _, value = line.partition("=")
    patterns = value.split(";")[1:2] if key.strip() == "backend" else []
    return any(pattern[pattern.find("/") :].strip() == path for one in patterns for pattern in one.split(":"))


def _nghttpx_leads(pattern: str, path: str) -> bool:
    _, slash, rest = pattern.partition("/")
    what = slash + rest
    return not what or path == what or (what.endswith("/") and path.startswith(what))


# --- Squid -----------------------------------------------------------------------------------------


def squid_looks_like(text: str) -> bool:
    """Return whether this may be Squid's."""
    return bool(re.search(r"^\s*(http_port|https_port|http_access|cache_peer|acl)\s", text, re.M))


def squid(text: str, tunnel: Tunnel) -> Iterator[Fault]:
    """Yield what is wrong for a tunnel through or behind it."""
    lines = _read(text)
    accelerates = [line for line in lines if line.name in ("http_port", "https_port") and "accel" in line.words]
    upgrades = [line for line in lines if line.name == "http_upgrade_request_protocols"]
    if accelerates and not any("allow" in line.words for line in upgrades):
        edits = insert_after(accelerates[-1].number, "http_upgrade_request_protocols WebSocket allow all")
        yield Fault("upgrade-dropped", accelerates[-1].number, "no Upgrade is passed on", edits)
    for line in upgrades:
        if "deny" in line.words:
            yield Fault("upgrade-dropped", line.number, "an Upgrade is refused", remove(line.number))
    for line in lines:
        if line.name == "request_body_max_size" and line.words[1:] and line.words[1] != "0":
            edits = replace(line.number, f"{line.indent}request_body_max_size 0")
            yield Fault("body-limit", line.number, f"bodies above {' '.join(line.words[1:])} are refused", edits)
        elif line.name in ("read_timeout", "client_lifetime", "write_timeout") and len(line.words) > 1:
            unit = line.words[2][:1] if len(line.words) > 2 else "s"
            value = seconds(line.words[1] + (unit if unit in "smhd" else "s"))
            if value is not None and value < LEAST:
                better = "1 day" if line.name == "client_lifetime" else "15 minutes"
                edits = replace(line.number, f"{line.indent}{line.words[0]} {better}")
                yield Fault("idle-cut", line.number, f"{line.words[0]} is {' '.join(line.words[1:])}", edits)
