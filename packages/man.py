"""The manual pages, made from the parser and from the declared options, so that they cannot go stale.

Section 1 has qanat(1) and a page for each command, qanat-server(1) and so on; section 5 has qanat.yaml(5).  Written in
man(7), for mandoc and groff alike.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from packages.source import epoch, summary, version
from qanat.cli.parser import COMMANDS, EXIT_CODES, build_parser, command_parsers
from qanat.config.schema import build_schema

_FILES = (
    ("/etc/qanat/server.yaml, /etc/qanat/client.yaml", "The configurations that the packaged systemd units run."),
    ("/etc/qanat/NAME.yaml", "The configuration of the unit qanat-client@NAME.service."),
    ("/var/lib/qanat", "What the services remember: known hosts, remembered ways, status and control sockets."),
)

_ESCAPES = (("\\", "\\e"), ("-", "\\-"), ("`", "\\(ga"), ("^", "\\(ha"), ("~", "\\(ti"))
"""What groff would set as another character than was typed (groff_char(7)), the backslash first."""


def write_manuals(into: Path) -> list[Path]:
    """Write every page below `into`, as man1/NAME.1 and man5/NAME.5, and return their paths."""
    pages = {"man1/qanat.1": _program()}
    for name, parser in command_parsers("qanat").items():
        pages[f"man1/qanat-{name}.1"] = _command(name, parser)
    pages["man5/qanat.yaml.5"] = _configuration()
    written = []
    for name, text in pages.items():
        path = into / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        written.append(path)
    return written


def _program() -> str:
    parser = build_parser("qanat")
    return _page(
        "qanat",
        1,
        summary(),
        [
            (
                "SYNOPSIS",
                f".B qanat\n.I COMMAND\n{_escaped('[ARGUMENT...]')}\n.br\n.B qanat \\-\\-help | \\-\\-version\n",
            ),
            ("DESCRIPTION", _paragraphs(parser.description or "")),
            ("COMMANDS", "".join(_tagged(f"\\fB{_escaped(name)}\\fR", text) for name, text in COMMANDS.items())),
            ("EXIT STATUS", _verbatim(EXIT_CODES.partition("\n")[2])),
            ("FILES", "".join(_tagged(f"\\fI{_escaped(path)}\\fR", text) for path, text in _FILES)),
            ("SEE ALSO", ",\n".join([*(f".BR qanat\\-{name} (1)" for name in COMMANDS), ".BR qanat.yaml (5)"]) + "\n"),
        ],
    )


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    usage = parser.format_usage().removeprefix("usage: ")
    details = (parser.epilog or "").partition("exit codes:\n")[0]
    sections = [
        ("SYNOPSIS", _verbatim(usage)),
        ("DESCRIPTION", _paragraphs(parser.description or "") + (_verbatim(details) if details.strip() else "")),
    ]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.help is not argparse.SUPPRESS]
        if actions:
            body = (_paragraphs(group.description) if group.description else "") + "".join(map(_action, actions))
            sections.append(((group.title or "options").upper(), body))
    sections.append(("EXIT STATUS", _verbatim(EXIT_CODES.partition("\n")[2])))
    sections.append(("SEE ALSO", ".BR qanat (1),\n.BR qanat.yaml (5)\n"))
    return _page(f"qanat-{name}", 1, COMMANDS[name], sections)


def _action(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else _metavar(action)
    if action.option_strings:
        names = ", ".join(f"\\fB{_escaped(name)}\\fR" for name in action.option_strings)
        term = f"{names} \\fI{_escaped(value)}\\fR" if value else names
    else:
        term = f"\\fI{_escaped(value)}\\fR"
    return _tagged(term, (action.help or "") % {"default": action.default, "prog": "qanat"})


def _metavar(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper() if action.option_strings else action.dest


def _configuration() -> str:
    schema: Mapping[str, Any] = build_schema()
    about = (
        "A configuration is one YAML file with a section for the server, the client, or both.  Paths are relative to "
        "the file, ${NAME} stands for an environment variable, and `qanat check -c FILE` reports every fault at once.  "
        "The example, which comes with the program, explains each key at length; `qanat schema` prints the JSON Schema "
        "from which this page is made."
    )
    sections = [("DESCRIPTION", _paragraphs(about))]
    for name, section in schema["properties"].items():
        body = _paragraphs(section.get("description", "")) + "".join(_keys(section, schema))
        sections.append((f"THE SECTION {name.upper()}", body))
    sections.append(("SEE ALSO", ".BR qanat (1),\n.BR qanat\\-check (1),\n.BR qanat\\-schema (1)\n"))
    return _page("qanat.yaml", 5, "configuration of Qanat", sections)


def _keys(section: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    for key, value in _properties(section, schema).items():
        said = _resolved(value, schema)
        yield _tagged(f"\\fB{_escaped(key)}\\fR", said.get("description", "") or _kind(said))
        below = "".join(_keys(said, schema))
        if below:
            yield f".RS\n{below}.RE\n"


def _properties(value: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that `value` may have, itself, in its entries, or in one of its forms."""
    found: dict[str, Any] = dict(value.get("properties", {}))
    forms = [*value.get("anyOf", ()), *value.get("oneOf", ()), value.get("items", {})]
    for form in forms:
        if form and isinstance(form, dict):
            found |= _properties(_resolved(form, schema), schema)
    return found


def _resolved(value: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = value.get("$ref")
    if not isinstance(reference, str):
        return value
    found: Any = schema
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return {**found, **{key: one for key, one in value.items() if key != "$ref"}}


def _kind(said: Mapping[str, Any]) -> str:
    kind = said.get("type", "")
    return f"A {kind}." if isinstance(kind, str) and kind else "See the example."


def _page(name: str, section: int, what: str, sections: Sequence[tuple[str, str]]) -> str:
    date = time.strftime("%Y-%m-%d", time.gmtime(epoch()))
    head = f'.TH "{_escaped(name.upper())}" "{section}" "{date}" "Qanat {version()}" "Qanat"\n'
    body = "".join(f".SH {title}\n{text.removeprefix('.PP' + chr(10))}" for title, text in sections)
    return f"{head}.SH NAME\n{_escaped(name)} \\- {_escaped(what)}\n{body}"


def _tagged(term: str, text: str) -> str:
    return f".TP\n{term}\n{_filled(text)}"


def _paragraphs(text: str) -> str:
    return "".join(f".PP\n{_filled(part)}" for part in text.strip().split("\n\n") if part)


def _filled(text: str) -> str:
    """Return running text: a sentence a line, as man(7) wants it, and never a line that is taken for a request."""
    joined = " ".join(text.split())
    return "".join(f"{_line(part)}\n" for part in re.split(r"(?<=[a-z)][.:])\s+(?=[A-Z`])", joined) if part)


def _verbatim(text: str) -> str:
    lines = text.strip("\n").splitlines()
    return ".PP\n.nf\n" + "".join(f"{_line(line)}\n" for line in lines) + ".fi\n"


def _line(text: str) -> str:
    # What users of the package type is `qanat`.
    escaped = _escaped(text.rstrip().replace("tunnel.py ", "qanat "))
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _escaped(text: str) -> str:
    for character, escape in _ESCAPES:
        text = text.replace(character, escape)
    return text
