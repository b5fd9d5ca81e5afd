"""`python -m benchmarks.kinds`: every kind of forward over every transport, at full counts; sections of docs/SOAK.md.

What is asserted is in tests.support.kind_promises, which the suite runs with smaller counts.  Then a stranger takes all
the connections of a published port that there are, and a browser uploads a gigabyte to published names.  About half
an hour on two cores; `--only` runs one part.  `make soak` runs all.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import textwrap
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.report.sections import made_on, number, table, write_section
from qanat.config.texts import AUTO, TRANSPORTS
from qanat.handshake.tokens import generate_token
from tests.support import kind_promises
from tests.support.harness import ROOT, Tunnel
from tests.support.kinds import KINDS, UDP_KINDS, Place
from tests.support.machine.browser import MEGABYTE, all_well, browse
from tests.support.machine.ports import unused_port
from tests.support.machine.published_site import NAME, behind_proxies, by_sni
from tests.support.strangers import EchoProcess, Others, stranger

REPORT = ROOT / "docs" / "SOAK.md"
CARRIERS = [name for name in TRANSPORTS if name != AUTO]
CUTS, SIZE, AT_ONCE, DATAGRAMS = 100, 5_000_000, 20, 1000
STALL = 4.0
STRANGERS = 3000
UPLOAD = 1000 * MEGABYTE
PROXIES = ("nginx", "Caddy", "Apache")


def main() -> int:
    """Run the parts asked for, and write their sections; exit code 1 when one failed."""
    parser = argparse.ArgumentParser(description="Every kind of forward at full counts; writes into docs/SOAK.md.")
    parser.add_argument("--only", action="append", choices=PARTS, help="may be repeated (default: all)")
    parser.add_argument("--transport", action="append", choices=CARRIERS, help="of kinds (default: all)")
    options = parser.parse_args()
    for part in options.only or PARTS:
        title, run = PARTS[part]
        print(title, flush=True)
        lines = run(options.transport or CARRIERS)
        print("\n".join(lines), flush=True)
        head = REPORT.read_text().partition("\n## ")[0].splitlines()
        write_section(REPORT, head, title, [f"{made_on()}.", "", *lines])
    return 0


def _kinds(transports: list[str]) -> list[str]:
    rows = ["| | cuts of all at once | longest until all had gone on, s | seconds in all |", "|---|---:|---:|---:|"]
    for transport in transports:
        with tempfile.TemporaryDirectory(prefix="qanat-") as directory, ExitStack() as stack:
            place = Place(Path(directory), transport, stack)
            for kind in KINDS.values():
                kind_promises.both_ways_at_once(place, kind, SIZE)
                kind_promises.half_close(place, kind)
                kind_promises.at_once(place, kind, AT_ONCE)
                kind.check_refusal(place)
            for udp in UDP_KINDS.values():
                kind_promises.datagrams_both_ways(place, udp, DATAGRAMS)
                kind_promises.flows_at_once(place, udp, AT_ONCE)
                udp.check_refusal(place)
            kind_promises.none_late_after_a_stall(place, seconds=STALL)
            with kind_promises.Cutting(place) as cutting:
                figures = cutting.run(CUTS)
        longest, seconds = figures["longest until all had gone on, s"], figures["seconds"]
        rows.append(f"| `{transport}` | {CUTS} | {number(longest)} | {number(seconds)} |")
        print(rows[-1], flush=True)
    text = (
        f"Each of {', '.join((*KINDS, *UDP_KINDS))}: {SIZE // 1_000_000} MB both ways at once, an answer after the "
        f"end, a refusal with its reason, {AT_ONCE} at once; for UDP sizes to 20,000 bytes, {DATAGRAMS:,} datagrams in "
        f"order and once, and none of those that a stall of {STALL:g} s held up.  Then one stream or flow of each, and "
        "uploads through both dynamic ports, while all connections are cut again and again: every byte arrived, in one "
        "session, and no datagram twice, or after a later one."
    )
    return [
        *textwrap.wrap(text, 116),
        "",
        *rows,
    ]


def _stranger(transports: list[str]) -> list[str]:
    del transports
    with tempfile.TemporaryDirectory(prefix="qanat-") as name, ExitStack() as stack:
        directory = Path(name)
        target = stack.enter_context(EchoProcess())
        ports = [unused_port() for _ in range(4)]
        forwards = [
            {"remote": f"127.0.0.1:{ports[0]}", "to": target.address},
            {"remote": f"127.0.0.1:{ports[1]}", "to": target.address},
            {"local": f"127.0.0.1:{ports[2]}", "to": target.address},
        ]
        tunnel = stack.enter_context(Tunnel(directory / "a", forwards))
        (directory / "a" / "b.token").touch(mode=0o600)
        (directory / "a" / "b.token").write_text(token := generate_token())
        (account,) = tunnel.server_settings["clients"]
        tunnel.server_settings["clients"] += [{**account, "name": "b", "token_file": "b.token"}]
        tunnel.start()
        other = Tunnel(
            directory / "b",
            [{"remote": f"127.0.0.1:{ports[3]}", "to": target.address}],
            url=f"ws://127.0.0.1:{tunnel.port}/tunnel",
            client={"name": "b", "server_fingerprint": tunnel.fingerprint},
        )
        other.token = token
        (directory / "b" / "a.token").write_text(token)
        stack.enter_context(other).start_client()
        names = ("the same port", "another forward", "a local forward", "another client")
        others = Others(dict(zip(names, ports, strict=True)), stack)
        others.round_trips()  # windows, caches
        ends = {"server": tunnel.server, "client": tunnel.client}
        before = others.round_trips(), {end: (program.threads, program.memory) for end, program in ends.items()}
        with stranger(ports[0], STRANGERS) as held:
            during = others.round_trips()
            figures: dict[str, float] = {"connections tried": STRANGERS, "left open": held}
            for end, program in ends.items():
                threads, memory = before[1][end]
                figures[f"{end}: threads more"] = program.threads - threads
                figures[f"{end}: memory grew by, MiB"] = (program.memory - memory) / (1 << 20)
        for visitor, seconds in before[0].items():
            figures[f"{visitor}: median before, ms"] = seconds * 1000
            figures[f"{visitor}: median beside the stranger, ms"] = during[visitor] * 1000
            assert during[visitor] <= 2 * seconds + 0.002, (visitor, seconds, during[visitor])
    return ["Idle connections, all of one address, to a remote forward that anybody reaches.", "", *table(figures)]


def _browser(transports: list[str]) -> list[str]:
    del transports
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="qanat-") as name, ExitStack() as stack:
        directory = Path(name)
        directory.chmod(0o755)  # Apache's children are nobody in particular
        site = behind_proxies(directory, stack, PROXIES)
        ways = {f"behind {proxy}": (site.ports[proxy], site.service) for proxy in PROXIES}
        (directory / "sni").mkdir()
        sni = by_sni(directory / "sni", stack)
        ways["by SNI, with Caddy at the client"] = sni.tunnel.port, sni.service
        for way, (port, service) in ways.items():
            said = browse(directory / way.replace(" ", "-"), NAME, port, service, upload=UPLOAD, seconds=600)
            assert said == all_well(UPLOAD), said
            seconds[f"{way}: bytes uploaded"] = UPLOAD
            print(way, flush=True)
    return [
        "A headless Chromium: a page and 100 resources, an upload whose SHA-256 the service says, a WebSocket, and",
        "server-sent events.",
        "",
        *table(seconds),
    ]


PARTS: dict[str, tuple[str, Callable[[list[str]], list[str]]]] = {
    "kinds": ("Every kind of forward over every transport", _kinds),
    "stranger": ("A stranger who takes a published port", _stranger),
    "browser": ("A browser at published names", _browser),
}


if __name__ == "__main__":
    sys.exit(main())
