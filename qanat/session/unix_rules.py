"""Which Unix sockets may be used: the `unix:` rules of `allow_connect` and `allow_listen`, asked by path.

The path that is judged is the real one, with every link followed, since that is what is opened; a rule's directory
stands for what it was when the rule was read.  So /var/run in a rule is /run, and a link that somebody puts into an
allowed directory opens nothing that no rule names.  Directories of no rule are not even looked at.  No other rule
opens a Unix socket, and no `unix:` rule anything else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from qanat.base.addresses import check_unix_path
from qanat.base.errors import EndpointError, UsageError
from qanat.config.access_rules import UnixRule
from qanat.mux.frames import Reason


class UnixRules:
    """The Unix sockets that one client may use for one thing.  Immutable, and safe to use from any thread."""

    def __init__(self, rules: Sequence[UnixRule], key: str) -> None:
        """`key` names the rules in messages.  Looks at the rules' directories."""
        self._key = key
        self._abstract = [rule for rule in rules if rule.directory == "@"]
        self._files = [(os.path.realpath(rule.directory), rule) for rule in rules if rule.directory != "@"]

    def connectable(self, path: str) -> str:
        """Return the path, without links, that may be connected to for `path`.  Raises EndpointError (NOT_ALLOWED).

        Looks at the disk, in directories that a rule names alone.
        """
        return self._checked(path, os.path.realpath)

    def bindable(self, path: str) -> str:
        """Return the path that may be listened on for `path`: its directory's links are followed, not its own.

        Otherwise as `connectable`.
        """

        def real(path: str) -> str:
            directory, _, name = path.rpartition("/")
            return os.path.join(os.path.realpath(directory or "/"), name)

        return self._checked(path, real)

    def _checked(self, path: str, real_path: Callable[[str], str]) -> str:
        try:
            path = check_unix_path(path)
        except UsageError as error:
            raise EndpointError(f"a path that {error.message}", code=Reason.NOT_ALLOWED, hint=error.hint) from error
        if path.startswith("@"):
            if any(rule.matches(path[1:]) for rule in self._abstract):
                return path
            raise self._not_allowed(path)
        directory, _, name = path.rpartition("/")
        if not any((directory or "/") in (real, rule.directory) and rule.matches(name) for real, rule in self._files):
            raise self._not_allowed(path)
        found = real_path(path)
        directory, _, name = found.rpartition("/")
        if not any((directory or "/") == real and rule.matches(name) for real, rule in self._files):
            raise self._not_allowed(path, found)
        return found

    def _not_allowed(self, path: str, found: str = "") -> EndpointError:
        """Return the refusal; where a link leads is for the log here alone."""
        leads = f", which is {found}," if found and found != path else ""
        return EndpointError(
            f"no rule allows {path} (add unix:{path} to {self._key} on the server)",
            code=Reason.NOT_ALLOWED,
            log_text=f"no rule allows {path}{leads} (add unix:{found or path} to {self._key})",
        )
