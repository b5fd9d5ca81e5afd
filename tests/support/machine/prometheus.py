"""A real Prometheus that scrapes what a test runs, and evaluates rules on it."""

from __future__ import annotations

import json
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.support.harness import SECONDS, Program
from tests.support.machine.ports import unused_port
from tests.support.machine.programs import require_program

Labels = dict[str, str]


class Prometheus:
    """Scrapes `targets`, addresses by the name that is their `instance`, every second; ended by `close`.

    The rules of `rules` are evaluated as often, and fire at once: what they would wait for is left out.
    """

    def __init__(self, directory: Path, targets: Mapping[str, str], rules: Path) -> None:
        directory.mkdir()
        content = yaml.safe_load(rules.read_text())
        for group in content["groups"]:
            group["interval"] = "1s"
            for rule in group["rules"]:
                rule["for"] = "0s"
        (directory / "rules.yml").write_text(yaml.safe_dump(content))
        statics = [{"targets": [address], "labels": {"instance": name}} for name, address in targets.items()]
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": "qanat", "static_configs": statics}],
        }
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._url = f"http://127.0.0.1:{(port := unused_port())}"
        self._program = Program(
            require_program("prometheus"),
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._program.close()
        if kind is not None:
            print(self._program.output)

    def query(self, expression: str) -> list[tuple[Labels, float]]:
        """What the expression is now, by labels; nothing while Prometheus is starting."""
        url = f"{self._url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        try:
            with _OPENER.open(url, timeout=20) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        except OSError:
            return []
        return [(each["metric"], float(each["value"][1])) for each in found]

    def wait_for(self, expression: str, count: int) -> None:
        """Block until the expression has `count` series."""
        self.wait_until(lambda: len(self.query(expression)) == count, lambda: f"{count} series of {expression}")

    def wait_until(self, condition: Callable[[], bool], what: Callable[[], object]) -> None:
        """Block until `condition`, which asks this, is true."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"gave up waiting for {what()}"
            time.sleep(0.25)  # it scrapes every second

    def fired(self) -> set[tuple[str, str]]:
        """Every alert that has been firing, with its instance."""
        found = self.query('count_over_time(ALERTS{alertstate="firing"}[10m])')
        return {(labels["alertname"], labels["instance"]) for labels, _ in found}


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
