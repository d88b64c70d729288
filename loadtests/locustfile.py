"""Sends real digits to a route and compares the versions that answer: speed, errors, share, accuracy.

locust -f loadtests/locustfile.py --headless -H http://127.0.0.1:8080 -u 50 -r 50 -t 30s
"""

from __future__ import annotations

import json
import random
import sys
from argparse import ArgumentParser
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from locust import FastHttpUser, constant_throughput, events, task
from locust.env import Environment
from locust.runners import MasterRunner, Runner, WorkerRunner

# locust puts this file's own directory on the path and not the repository.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loadtests.comparison import Comparison, Outcome, Served
from loadtests.report import as_json, as_table
from loadtests.samples import samples

SEED = 2026
TIMEOUT_S = 10.0


@events.init_command_line_parser.add_listener
def add_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("Turnout", "Which route is asked, by whom, and where the result goes")
    group.add_argument("--route", default="digits", help="the route to ask (default: digits)")
    group.add_argument(
        "--keys", type=int, default=1000, help="how many users the sticky keys stand for (default: 1000)"
    )
    group.add_argument("--report-json", metavar="FILE", help="write the comparison to this file as well")


class DigitsUser(FastHttpUser):
    """A client of the route.

    `FastHttpUser` and not `HttpUser`: that one takes several times the processor time for a request, and beside
    a gateway that answers in a millisecond it would mostly measure itself.
    """

    # Ten requests a second for each of locust's users, as long as answers take less than 100 ms: the load is
    # what was asked for, not what the machine can take, where latency is only the length of a queue.
    wait_time = constant_throughput(10)
    network_timeout = connection_timeout = TIMEOUT_S
    _numbers: ClassVar[count[int]] = count()

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        options: Any = environment.parsed_options
        self._route: str = options.route
        self._keys: int = max(1, options.keys)
        worker = getattr(environment.runner, "worker_index", 0)
        self._random = random.Random(f"{SEED}/{worker}/{next(self._numbers)}")

    @task
    def classify(self) -> None:
        sample = self._random.choice(samples())
        with self.client.post(
            f"/v2/models/{self._route}/infer",
            data=sample.body,
            headers={
                "content-type": "application/json",
                "turnout-key": f"user-{self._random.randrange(self._keys)}",
            },
            context={"label": sample.label},
            catch_response=True,
        ) as response:
            served = Served.from_headers(response.headers)
            # Known only now; locust files the request when this block ends.
            response.request_meta["name"] = served.name(self._route)
            response.request_meta["context"]["served"] = served
            if response.status_code == 200:
                answer = _label(response.content)
                response.request_meta["context"]["answer"] = answer
                if answer is None:
                    response.failure("the answer has no output `label`")


def _label(body: bytes | None) -> int | None:
    try:
        outputs = json.loads(body or b"")["outputs"]
        return next(int(output["data"][0]) for output in outputs if output["name"] == "label")
    except (ValueError, KeyError, IndexError, TypeError, StopIteration):
        return None


@events.init.add_listener
def compare_versions(environment: Environment, runner: Runner, **_: Any) -> None:
    comparison = Comparison()
    listen = environment.events
    listen.test_start.add_listener(lambda **_: comparison.clear())
    listen.request.add_listener(lambda **request: _record(comparison, **request))
    if isinstance(runner, WorkerRunner):
        listen.report_to_master.add_listener(lambda data, **_: data.update(comparison=comparison.drain()))
        return
    if isinstance(runner, MasterRunner):
        listen.worker_report.add_listener(lambda data, **_: comparison.merge(data["comparison"]))
    options: Any = environment.parsed_options
    # Headless, the last thing on the screen, below locust's own tables; else at the end of each test.
    finished = listen.quit if options.headless else listen.test_stop
    finished.add_listener(lambda **_: _report(comparison, options))


def _record(
    comparison: Comparison,
    *,
    context: dict[str, Any],
    response_time: float,
    exception: Exception | None,
    **_: Any,
) -> None:
    right = context.get("answer") == context["label"]
    outcome = Outcome.ERROR if exception else Outcome.RIGHT if right else Outcome.WRONG
    comparison.record(context["served"], outcome, latency_ms=response_time)


def _report(comparison: Comparison, options: Any) -> None:
    rows = comparison.rows()
    print(f"\n{as_table(options.route, rows)}", flush=True)
    if options.report_json:
        Path(options.report_json).write_text(as_json(options.route, rows), encoding="utf-8")
