"""`service`: have systemd, supervisor or cron keep a configuration running, and say what was done."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from qanat.base.errors import QanatError, UsageError
from qanat.cli.called import lasting_command
from qanat.cli.main import DONE, FAILED, complain
from qanat.cli.output import write_out
from qanat.cli.parser import add_config
from qanat.service.account import DEFAULT, NOT_MADE_YET, Account, find_account, make_account, own_account
from qanat.service.choose import MANAGERS, installed_services, manager_called, right_manager
from qanat.service.plan import SYSTEM_STATE, Plan, check_access, plans_of, prepare
from qanat.service.record import Installed, ServiceManager

DETAILS = """\
install     write the unit, program or crontab entry for FILE, and start it.  As root it is the machine's, and runs
            as the user qanat, who is made if need be and is given root's keys and tokens beside FILE; with --user it
            is yours.  Once more: what is as it should be is left alone.
uninstall   stop it, and remove what `install` wrote.  The configuration, the keys and the state stay.  --all leaves
            alone what another Qanat on this machine has installed and runs.
restart     stop it and start it again
status      say whether it runs; the exit code is 0 when all do.  Without -c: every one that `install` has written for
            the machine or, where you are not root, for you; with --user only yours.

Where systemd runs it is a unit, else where supervisor runs a program, else a line for cron.

"""

_ACTIONS = ("install", "uninstall", "restart", "status")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    parser.add_argument("action", choices=_ACTIONS, metavar="ACTION", help=", ".join(_ACTIONS))
    add_config(parser, required=False)
    parser.add_argument("--all", action="store_true", help="uninstall or restart every one that `install` has written")
    parser.add_argument("--user", action="store_true", help="a service of your own, without root")
    parser.add_argument("--run-as", metavar="USER", help=f"the user it runs as, for root (default: {DEFAULT})")
    parser.add_argument("--manager", choices=MANAGERS, help="instead of the one that runs here")
    parser.add_argument("--name", help="what it is called (default: qanat-server for server.yaml, and so on)")
    parser.add_argument("--json", action="store_true", help="print `status` as one JSON object")


def run(options: argparse.Namespace) -> int:
    """Do it, print what was done, and return the exit code.  Blocks.  Raises QanatError."""
    if sys.platform == "win32":
        raise UsageError("there is no systemd, supervisor or cron on Windows", hint="use its Task Scheduler")
    for flag, actions in (("all", ("uninstall", "restart")), ("json", ("status",)), ("run_as", ("install",))):
        if getattr(options, flag) and options.action not in actions:
            raise UsageError(f"--{flag.replace('_', '-')} goes with {' and '.join(actions)}", hint="leave it out")
    if options.user and options.run_as:
        raise UsageError("--user and --run-as exclude each other", hint="--user is always yourself")
    if options.action == "status":
        return _status(options)
    if options.config is None and not options.all:
        raise UsageError(f"{options.action} needs -c FILE", hint="see: service --help")
    if os.geteuid() != 0 and not options.user:
        raise UsageError("only root can change the machine's services", hint="use sudo, or --user for one of your own")
    return _install(options) if options.action == "install" else _each(options)


def _install(options: argparse.Namespace) -> int:
    account = own_account() if options.user else find_account(options.run_as or DEFAULT)
    if account is None and options.run_as:
        raise UsageError(f"there is no user {options.run_as}", hint="make it first, or leave --run-as out")
    plans = plans_of(
        options.config,
        program=lasting_command(),
        account=account or Account(DEFAULT, NOT_MADE_YET, NOT_MADE_YET),
        for_user=options.user,
        name=options.name,
    )
    manager = (
        manager_called(options.manager, for_user=options.user)
        if options.manager
        else right_manager(for_user=options.user)
    )
    for plan in plans:
        for other, service in installed_services(for_user=options.user):
            if service.name == plan.name and (service.config != plan.config or service.role != plan.role):
                raise UsageError(
                    f"{plan.name} is the service of {service.config} already",
                    hint="uninstall that one, or choose another name: --name NAME",
                )
            if (service.config, service.role) == (plan.config, plan.role) and (
                other.kind != manager.kind or service.name != plan.name
            ):
                raise UsageError(
                    f"{plan.config} runs under {other.kind} already, as {service.name}",
                    hint=f"first: service uninstall -c {shlex.quote(str(plan.config))}",
                )
        manager.check(plan)
        check_access(plan)
    if account is None:  # from here on things change
        account = make_account(DEFAULT, SYSTEM_STATE / DEFAULT)
        write_out(f"made the user {account.name}, without a password or a shell\n")
    for plan in plans:
        _say(plan.name, prepare(replace(plan, account=account)))
        try:
            _say(plan.name, manager.install(replace(plan, account=account)))
        except QanatError:
            _say_what_stays(plan, manager)
            raise
    return DONE


def _say_what_stays(plan: Plan, manager: ServiceManager) -> None:
    """Say where a service stands that did not start, so that its manager's log can be read and it can be cured."""
    again = f"install it again, or: service uninstall -c {shlex.quote(str(plan.config))}"
    for service in manager.installed():
        if service.name == plan.name:
            _say(plan.name, [f"stays in {service.where}: {again}"])


def _each(options: argparse.Namespace) -> int:
    found = _chosen(options)
    if not found and not options.all and (options.action == "restart" or not options.config.exists()):
        raise UsageError(
            f"no service of {options.config} is installed here",
            hint="`service status` lists those that are" + ("" if options.user else "; yours are with --user"),
        )
    if options.all:
        found = [each for each in found if _is_ours(each[1])]
    if not found:
        write_out(f"nothing to do: no service{_of(options.config)} is installed\n")
    failed = False
    for manager, service in found:
        try:
            _say(
                service.name, manager.uninstall(service) if options.action == "uninstall" else manager.restart(service)
            )
        except QanatError as error:
            if not options.all:
                raise
            complain(error)
            failed = True
    if found and options.action == "uninstall" and not failed:
        write_out("kept: the configuration, with its keys and tokens, and the state directory\n")
    return FAILED if failed else DONE


def _status(options: argparse.Namespace) -> int:
    found = [(service, manager.state(service)) for manager, service in _chosen(options)]
    running = bool(found) and all(state.running for _, state in found)
    if options.json:
        services = [
            {
                "name": service.name,
                "role": service.role,
                "config": str(service.config),
                "manager": service.manager,
                "written_in": service.where,
                "running": state.running,
                "pid": state.pid,
                "state": state.text,
            }
            for service, state in found
        ]
        write_out(json.dumps({"version": 1, "services": services}, indent=2) + "\n")
    elif not found:
        write_out(f"no service{_of(options.config)} is installed\n")
    for service, state in [] if options.json else found:
        write_out(f"{service.name}: {state.text}\n  {service.role} of {service.config}, {service.where}\n")
    return DONE if running else FAILED


def _chosen(options: argparse.Namespace) -> list[tuple[ServiceManager, Installed]]:
    config = None if options.config is None else Path(os.path.abspath(options.config))
    found = list(installed_services(for_user=options.user, config=config))
    if options.action == "status" and not options.user and os.geteuid() != 0:
        found += installed_services(for_user=True, config=config)
    return [
        (manager, service)
        for manager, service in found
        if options.name in (None, service.name) and options.manager in (None, service.manager)
    ]


def _is_ours(service: Installed) -> bool:
    """Return whether a service runs this program, or one that is gone; say so of another one's, which stays."""
    ours = service.program in ("", lasting_command()[0]) or not os.path.exists(service.program)
    if not ours:
        config = shlex.quote(str(service.config))
        write_out(f"left alone: {service.name}, which runs {service.program}; name it with -c {config}\n")
    return ours


def _of(config: Path | None) -> str:
    return f" of {config}" if config is not None else ""


def _say(name: str, done: list[str]) -> None:
    for line in done:
        write_out(f"{name}: {line}\n")
