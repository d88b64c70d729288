"""Load in steps, to see from which load on a version becomes slow. Locust uses it when it is named too:

locust -f loadtests/locustfile.py,loadtests/shapes.py --headless -H http://127.0.0.1:8080
"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from locust import LoadTestShape, events


@events.init_command_line_parser.add_listener
def add_options(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("Steps", "The load that grows")
    group.add_argument("--steps", type=int, default=5, help="how many steps (default: 5)")
    group.add_argument("--step-users", type=int, default=20, help="users that each step adds (default: 20)")
    group.add_argument("--step-seconds", type=float, default=30, help="how long a step lasts (default: 30)")


class Steps(LoadTestShape):
    """`--step-users` more every `--step-seconds`, and the end after `--steps`."""

    def tick(self) -> tuple[int, float] | None:
        assert self.runner is not None
        options: Any = self.runner.environment.parsed_options
        return users_at(
            self.get_run_time(), steps=options.steps, users=options.step_users, seconds=options.step_seconds
        )


def users_at(elapsed_s: float, *, steps: int, users: int, seconds: float) -> tuple[int, float] | None:
    """(users, users to start a second) at a moment of the test; None when it is over."""
    step = int(elapsed_s // seconds) + 1
    return None if step > steps else (step * users, float(users))
