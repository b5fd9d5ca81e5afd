"""Caddy: a site's block and its reverse_proxy.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qanat.doctor.proxy_config.fault import LEAST, Edit, Fault, Tunnel, indent_of, remove, replace, rewritten, seconds

_PROXY = re.compile(r"^(\s*)reverse_proxy\s+(.*?)\s*(\{)?\s*$")
_TIMEOUT = re.compile(r"^(\s*)(read_body|read_header|idle|read_timeout|write_timeout|write)\s+(\S+)\s*$")


def looks_like(text: str) -> bool:
    """Return whether this may be Caddy's."""
    return bool(re.search(r"^\s*reverse_proxy\b", text, re.M)) and "{" in text


def faults(text: str, tunnel: Tunnel) -> Iterator[Fault]:
    """Yield what is wrong for the tunnel."""
    path = tunnel.path
    lines = text.split("\n")
    yield from _proxies(lines, path)
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] in ("request_buffers", "buffer_requests"):
            yield Fault("request-held", number, f"{words[0]} holds requests back", remove(number))
        elif words[0] in ("response_buffers", "buffer_responses"):
            yield Fault("answer-held", number, f"{words[0]} holds answers back", remove(number))
        elif words[0] == "max_size":
            yield Fault("body-limit", number, f"bodies above {words[-1]} are refused", remove(number))
        elif words[0] == "protocols" and "h2" not in words:
            changed = f"{indent_of(line)}protocols h1 h2"
            yield Fault("http2-off", number, "protocols has no h2", replace(number, changed))
        elif words[0] == "protocols" and "h1" not in words:
            changed = f"{indent_of(line)}protocols h1 h2"
            yield Fault("http1-off", number, "protocols has no h1, which WebSocket needs", replace(number, changed))
        elif words[0] == "handle_path" and len(words) > 1 and path.startswith(words[1].rstrip("*")):
            edits = replace(number, line.replace("handle_path", "handle", 1))
            only_stripped = not _rewrites(lines[number:])
            yield from rewritten(
                tunnel, number, f"handle_path takes {words[1]} away", edits, only_stripped=only_stripped
            )
        elif match := _TIMEOUT.match(line):
            value = seconds(match[3])
            if value is not None and value < LEAST:
                changed = f"{match[1]}{match[2]} 5m"
                yield Fault("idle-cut", number, f"{match[2]} is {match[3]}", replace(number, changed))
        elif words[0] == "respond" and len(words) > 2 and path in words[1] and words[-1].isdigit():
            yield Fault("forbidden", number, f"{path} is answered with {words[-1]}", remove(number))


def _rewrites(lines: list[str]) -> bool:
    """Return whether the block that these lines begin in puts another path in the place of what was there."""
    depth = 0
    for line in lines:
        words = line.split()
        depth += (words[-1:] == ["{"]) - (words[:1] == ["}"])
        if depth < 0:
            return False
        if words[:1] in (["rewrite"], ["uri"]):
            return True
    return False


def _proxies(lines: list[str], path: str) -> Iterator[Fault]:
    found = []
    for number, line in enumerate(lines, start=1):
        match = _PROXY.match(line)
        if match is not None:
            found.append((number, match[1], match[2].split()))
    if not found:
        return
    targets = [word for _, _, words in found for word in words if not word.startswith(("@", "/", "*"))]
    over_http2 = any(target.startswith("h2c://") for target in targets)
    over_http1 = any(not target.startswith("h2c://") for target in targets)
    if over_http2 and over_http1:
        return
    number, indent, words = found[0]
    target = next((word for word in words if not word.startswith(("@", "/", "*"))), "127.0.0.1:8443")
    address = re.sub(r"^\w+://", "", target)
    step = "\t" if "\t" in indent or not indent else "    "
    route = (
        f"{indent}route {path} {{",
        f"{indent}{step}@websocket header Upgrade websocket",
        f"{indent}{step}reverse_proxy @websocket {address}",
        f"{indent}{step}reverse_proxy h2c://{address}",
        f"{indent}}}",
    )
    if over_http2:
        code, text = "upgrade-dropped", "h2c:// takes no WebSocket: those need HTTP/1.1 to the server"
    else:
        code, text = "http2-not-to-server", "HTTP/1.1 is spoken to the server, and http2 and grpc need h2c:// there"
    # A route comes before what handles the rest of the site, wherever it stands.
    yield Fault(code, number, text, (Edit(number, route, 0),))
