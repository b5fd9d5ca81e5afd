"""Which service manager is the right one here, and what any of them has of ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qanat.base.errors import UsageError
from qanat.service import systemd
from qanat.service.cron import Cron
from qanat.service.record import Installed, ServiceManager
from qanat.service.supervisor import Supervisor
from qanat.service.systemd import Systemd

MANAGERS = ("systemd", "supervisor", "cron")


def manager_called(kind: str, *, for_user: bool) -> ServiceManager:
    """Return the manager of this name.  Raises UsageError where a user has none of that kind."""
    if kind == "systemd":
        return Systemd(for_user=for_user)
    if kind == "supervisor":
        if for_user:
            raise UsageError("supervisor is the machine's, not a user's", hint="leave --user out, or --manager cron")
        return Supervisor()
    return Cron(for_user=for_user)


def right_manager(*, for_user: bool) -> ServiceManager:
    """Return the manager that runs here: systemd, else supervisor, else cron, which any machine can have."""
    if systemd.is_running(for_user=for_user):
        return Systemd(for_user=for_user)
    if not for_user and (supervisor := Supervisor()).is_running:
        return supervisor
    return Cron(for_user=for_user)


def installed_services(*, for_user: bool, config: Path | None = None) -> Iterator[tuple[ServiceManager, Installed]]:
    """Yield each service that any manager has of ours, or only those of one configuration file."""
    for kind in MANAGERS:
        if for_user and kind == "supervisor":
            continue
        manager = manager_called(kind, for_user=for_user)
        for service in manager.installed():
            if config is None or service.config == config:
                yield manager, service
