"""Units for systemd: those in deploy/, fitted to one configuration, for the machine or for one user."""

from __future__ import annotations

import os
import re
from pathlib import Path

from qanat.base.errors import QanatError
from qanat.base.share import share
from qanat.service.plan import Plan
from qanat.service.record import Installed, State, call, mark, marked_files, put, read_own

SYSTEM_UNITS = Path("/etc/systemd/system")

_FOR_USER = (
    "Type NotifyAccess ExecStart TimeoutStartSec ExecReload Restart RestartSec RestartPreventExitStatus TimeoutStopSec "
    "WatchdogSec UMask LimitNOFILE LimitCORE NoNewPrivileges RestrictRealtime RestrictSUIDSGID LockPersonality "
    "MemoryDenyWriteExecute SystemCallArchitectures Environment"
)
"""What a user's own manager can do without privileges; the rest of the unit would keep it from starting."""
_BIND = "CAP_NET_BIND_SERVICE"


class Systemd:
    """The system's manager, or that of the user who runs this (`for_user`)."""

    kind = "systemd"

    def __init__(self, *, for_user: bool, units: Path | None = None) -> None:
        self._for_user = for_user
        self._units = units or (_user_units() if for_user else SYSTEM_UNITS)
        self._systemctl = ["systemctl", "--user"] if for_user else ["systemctl"]

    def check(self, plan: Plan) -> None:
        """Refuse where systemd does not run, and another's unit; see `ServiceManager`."""
        if not is_running(for_user=self._for_user):
            raise QanatError(
                "you have no systemd of your own here" if self._for_user else "systemd does not run here",
                hint=f"choose another: --manager cron{'' if self._for_user else ', or --manager supervisor'}",
            )
        read_own(self._units / f"{plan.name}.service", owner=plan.name)

    def install(self, plan: Plan) -> list[str]:
        """Write, enable and start the unit; see `ServiceManager`."""
        path = self._units / f"{plan.name}.service"
        changed = put(path, unit_text(plan), owner=plan.name)
        name = path.name
        if not changed and self._is_active(name):
            return [f"{path} is as it should be, and {name} runs"]
        done = [f"wrote {path}"] if changed else []
        self._call("daemon-reload")
        self._call("enable", name)
        try:
            self._call("restart", name)
        except QanatError as error:
            journal = f"journalctl {'--user ' if self._for_user else ''}-u {name}"
            raise QanatError(f"{name} does not start: {error.message}", hint=f"see: {journal}") from error
        done.append(f"enabled and started {name}" if changed else f"started {name}")
        if self._for_user and not _lingers():
            done.append("it ends with your last login; to keep it running: loginctl enable-linger")
        return done

    def uninstall(self, service: Installed) -> list[str]:
        """Stop and disable the unit, and remove it; see `ServiceManager`."""
        path = Path(service.where)
        self._call("disable", "--now", path.name, check=False)
        self._call("stop", path.name, check=False)
        path.unlink(missing_ok=True)
        self._call("daemon-reload", check=False)
        self._call("reset-failed", path.name, check=False)
        return [f"stopped and disabled {path.name}", f"removed {path}"]

    def restart(self, service: Installed) -> list[str]:
        """Restart the unit; see `ServiceManager`."""
        name = Path(service.where).name
        self._call("restart", name)
        return [f"restarted {name}"]

    def state(self, service: Installed) -> State:
        """Ask systemd; see `ServiceManager`."""
        name = Path(service.where).name
        wanted = "ActiveState,SubState,MainPID,StatusText"
        said = dict(
            line.partition("=")[::2]
            for line in self._call("show", f"--property={wanted}", name, check=False).splitlines()
        )
        active, pid = said.get("ActiveState", "unknown"), said.get("MainPID", "0")
        text = f"{active} ({said.get('SubState', '?')})"
        if said.get("StatusText"):
            text = f"{text}: {said['StatusText']}"
        return State(active in ("active", "reloading"), text, int(pid) if pid.isdigit() and pid != "0" else None)

    def installed(self) -> list[Installed]:
        """Return the units that bear our mark."""
        return marked_files(self._units, "*.service", manager=self.kind)

    def _is_active(self, name: str) -> bool:
        return self._call("is-active", name, check=False).strip() == "active"

    def _call(self, *arguments: str, check: bool = True) -> str:
        return call([*self._systemctl, *arguments], check=check).stdout


def is_running(*, for_user: bool) -> bool:
    """Return whether systemd manages this machine, and with `for_user` whether it has a manager for this user."""
    if not os.path.isdir("/run/systemd/system"):
        return False
    if not for_user:
        return True
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    return os.path.exists(f"{runtime}/systemd/private")


def unit_text(plan: Plan) -> str:
    """Return the unit for `plan`: the one in deploy/ for its role, with what this configuration needs."""
    text = share("deploy", f"qanat-{plan.role}.service").read_text("utf-8")
    text = text[text.index("[Unit]") :]
    text = _set(text, "Description", f"Qanat tunnel, {plan.role} of {_escaped(str(plan.config))}")
    text = _set(text, "ExecStart", " ".join(_quoted(word) for word in plan.command))
    text = _set(text, "TimeoutStopSec", str(plan.stop_seconds))
    text = _for_the_user(text) if plan.for_user else _for_the_machine(text, plan)
    return f"{mark(plan)}\n# Written by `qanat service install`; `qanat service uninstall` removes it.\n\n{text}"


def _for_the_machine(text: str, plan: Plan) -> str:
    text = _set(text, "User", plan.account.name)
    text = _set(text, "Group", plan.account.group)
    for key, value in (("StateDirectory", plan.state_name), ("CacheDirectory", plan.state_name or "qanat")):
        text = _set(text, key, value) if value is not None else _drop(text, key, f"{key}Mode")
    text = _drop(text, "AmbientCapabilities")
    bind = f"{_BIND}\nAmbientCapabilities={_BIND}" if plan.low_ports else ""
    text = _set(text, "CapabilityBoundingSet", bind)
    if plan.lies_below("/home", "/root", "/run/user"):
        text = _set(text, "ProtectHome", "read-only")
    if plan.lies_below("/tmp", "/var/tmp"):
        text = _set(text, "PrivateTmp", "no")
    others = [str(path) for path in plan.writes if plan.state_name is None or not path.is_relative_to(plan.state)]
    others = [path for path in others if path not in ("/", "/run/qanat")]
    if others:
        quoted = " ".join(f"-{_quoted(path)}" for path in others)
        text = text.replace("\nProtectSystem=strict\n", f"\nProtectSystem=strict\nReadWritePaths={quoted}\n")
    return text


def _for_the_user(text: str) -> str:
    kept: list[str] = []
    section = ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line
            kept += ["", line] if kept else [line]
        elif line.startswith("#") or not line:
            continue
        elif section == "[Service]":
            if line.partition("=")[0] in _FOR_USER.split():
                kept.append(line)
        elif section == "[Install]":
            kept.append("WantedBy=default.target")
        elif "network-online" not in line:
            kept.append(line)
    return "\n".join(kept) + "\n"


def _set(text: str, key: str, value: str) -> str:
    changed, count = re.subn(rf"^{key}=.*$", lambda _: f"{key}={value}", text, flags=re.M)
    assert count == 1, f"the unit in deploy/ has {key}= {count} times"
    return changed


def _drop(text: str, *keys: str) -> str:
    return re.sub(rf"^(?:{'|'.join(keys)})=.*\n", "", text, flags=re.M)


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """Return `word` as systemd.service(5) wants it in a command line."""
    word = _escaped(word).replace("$", "$$")
    if re.fullmatch(r"[A-Za-z0-9_./%$:@+,=-]+", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _user_units() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(base) / "systemd" / "user"


def _lingers() -> bool:
    try:
        done = call(["loginctl", "show-user", str(os.getuid()), "--property=Linger", "--value"], check=False)
    except QanatError:
        return False
    return done.stdout.strip() == "yes"
