"""Completion for bash and zsh, made from the parser as the manuals are."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from qanat.cli.parser import COMMANDS, command_parsers

_FILES = frozenset({"FILE", "DIR", "PATH", "PEM"})
"""What a value is called where a path is meant."""


def write_bash(path: Path) -> None:
    """Write the script for bash-completion, which loads it when `qanat` is completed for the first time."""
    options, values, words = [], [], []
    for name, parser in command_parsers("qanat").items():
        actions = list(_shown(parser))
        options.append(f'        {name}) options="{" ".join(_names(actions))}" ;;')
        choices = [" ".join(map(str, one.choices)) for one in actions if not one.option_strings and one.choices]
        if choices:
            words.append(f'        {name}) words="{" ".join(choices)}" ;;')
        for action in actions:
            if action.option_strings and action.nargs != 0:
                values.append(
                    f"        {'|'.join(f'{name}:{option}' for option in action.option_strings)}) {_bash(action)} ;;"
                )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        _BASH.format(
            commands=" ".join(COMMANDS), options="\n".join(options), values="\n".join(values), words="\n".join(words)
        ),
        "utf-8",
    )


def write_zsh(path: Path) -> None:
    """Write the function for zsh, to lie in a directory of `$fpath`."""
    commands = "\n".join(f"        {_quoted(f'{name}:{text}')}" for name, text in COMMANDS.items())
    cases = []
    for name, parser in command_parsers("qanat").items():
        lines = " \\\n".join(f"                {spec}" for action in _shown(parser) for spec in _zsh(action))
        cases.append(f"            {name})\n                _arguments -s \\\n{lines}\n                ;;")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_ZSH.format(commands=commands, cases="\n".join(cases)), "utf-8")


def _shown(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    return (action for action in parser._actions if action.help is not argparse.SUPPRESS)


def _names(actions: list[argparse.Action]) -> list[str]:
    return [name for action in actions for name in action.option_strings]


def _metavar(action: argparse.Action) -> str:
    return action.metavar if isinstance(action.metavar, str) else action.dest.upper()


def _bash(action: argparse.Action) -> str:
    if action.choices is not None:
        return f'COMPREPLY=($(compgen -W "{" ".join(map(str, action.choices))}" -- "$current"))'
    return "_filedir" if _metavar(action) in _FILES else "COMPREPLY=()"


def _zsh(action: argparse.Action) -> Iterator[str]:
    help_text = re.sub(r"\s+", " ", (action.help or "") % {"default": action.default, "prog": "qanat"})
    what = re.sub(r"([\[\]:\\])", r"\\\1", help_text)
    if action.choices is not None:
        values = f"({' '.join(map(str, action.choices))})"
    else:
        values = "_files" if _metavar(action) in _FILES else " "
    if not action.option_strings:
        yield _quoted(f"{'*' if action.nargs in ('*', '+') else ''}:{_metavar(action).lower()}:{values}")
        return
    many = "*" if isinstance(action, argparse._AppendAction) else f"({' '.join(action.option_strings)})"
    for name in action.option_strings:
        value = "" if action.nargs == 0 else f":{_metavar(action).lower()}:{values}"
        yield _quoted(f"{many}{name}[{what}]{value}")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


_BASH = """\
# bash completion for qanat(1), made from its parser.

_qanat()
{{
    local current previous command options words
    current=${{COMP_WORDS[COMP_CWORD]}}
    previous=${{COMP_WORDS[COMP_CWORD-1]}}
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "{commands} --help --version" -- "$current"))
        return
    fi
    command=${{COMP_WORDS[1]}}
    # bash-completion has it; without that, plain files.
    declare -F _filedir >/dev/null || _filedir() {{ COMPREPLY=($(compgen -f -- "$current")); }}
    local cur=$current
    case "$command:$previous" in
{values}
    *)
        case "$command" in
{options}
        *) options="" ;;
        esac
        case "$command" in
{words}
        *) words="" ;;
        esac
        if [[ $current == -* ]]; then
            COMPREPLY=($(compgen -W "$options" -- "$current"))
        elif [[ $words ]]; then
            COMPREPLY=($(compgen -W "$words" -- "$current"))
        else
            _filedir
        fi
        ;;
    esac
}} &&
complete -F _qanat qanat
"""

_ZSH = """\
#compdef qanat
# zsh completion for qanat(1), made from its parser.

_qanat() {{
    local context state state_descr line
    typeset -A opt_args
    local -a commands
    commands=(
{commands}
    )
    _arguments -C \\
        '(-h --help)'{{-h,--help}}'[show the help]' \\
        '--version[print the version]' \\
        '1:command:->command' \\
        '*::argument:->argument'
    case $state in
    command)
        _describe command commands
        ;;
    argument)
        case $line[1] in
{cases}
        esac
        ;;
    esac
}}

_qanat "$@"
"""
