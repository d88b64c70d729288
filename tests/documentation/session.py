"""Runs what a page tells its reader to type, on a gateway of its own: the page's ports become free ones."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documentation.pages import ROOT, Step
from tests.servers.gateway import wait_for
from tests.servers.redis import RedisServer

READY_S = 60.0
COMMAND_S = 60.0
_READY = re.compile(r"turnout is ready: data http://(\S+)  admin http://(\S+)  grpc (\S+)")
_EXIT = re.compile(r"^\[exit (\d+)\]\n", re.MULTILINE)
_SERVE = re.compile(r"^(?:make serve|turnout serve (?P<options>.*?))(?: &)?$")


class Session:
    """The reader's terminals: a copy of what the repository ships, and what was started in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        shutil.copytree(ROOT / "configs", directory / "configs")
        programs = directory / "bin"
        programs.mkdir()
        for name, arguments in (("turnout", "-m gateway "), ("python", "")):
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments}"$@"\n')
            program.chmod(0o755)
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TURNOUT_")},
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "TURNOUT_PORT": "0",
            "TURNOUT_GRPC_PORT": "0",
            "TURNOUT_ADMIN_PORT": "0",
        }
        self._gateways: list[subprocess.Popen[bytes]] = []
        self._redis: RedisServer | None = None
        self._addresses: dict[str, str] = {}

    def run(self, step: Step) -> tuple[str, int]:
        """(what it printed, with the page's own addresses, and its exit code)."""
        serve = _SERVE.match(step.command)
        if serve:
            return self._serve(serve["options"] or _quickstart_options()), 0
        if step.command.startswith("redis-server"):
            return self._start_redis(step.command), 0
        done = subprocess.run(
            ["bash", "-c", self._translated(step.command)],
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            cwd=self.directory,
            env=self._environment,
        )
        return self._back(done.stdout + done.stderr), done.returncode

    def close(self) -> None:
        for gateway in self._gateways:
            gateway.terminate()
        for gateway in self._gateways:
            gateway.wait(45)
        if self._redis is not None:
            self._redis.kill()

    def _serve(self, options: str) -> str:
        log = self.directory / f"log{len(self._gateways)}"
        # A port that the page names may be taken here.
        options = re.sub(r"--((?:admin-|grpc-)?port) [0-9]+", r"--\1 0", options)
        arguments = shlex.split(self._translated(options))
        with log.open("wb") as screen:
            gateway = subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve", *arguments],
                stdout=screen,
                stderr=screen,
                cwd=self.directory,
                env=self._environment,
            )
        self._gateways.append(gateway)
        wait_for(
            lambda: _READY.search(log.read_text()) or gateway.poll() is not None,
            READY_S,
            lambda: log.read_text(),
        )
        ready = _READY.search(log.read_text())
        assert ready, log.read_text()
        if "127.0.0.1:8080" not in self._addresses:
            # The commands of a page are about its first gateway.
            self._addresses |= {
                "127.0.0.1:8080": ready[1],
                "127.0.0.1:8082": ready[2],
                "127.0.0.1:8081": ready[3],
            }
            self._environment["TURNOUT_ADMIN"] = f"http://{ready[2]}"
        return self._back(log.read_text())

    def _start_redis(self, command: str) -> str:
        if shutil.which("redis-cli") is None:
            pytest.skip("redis-cli is not on the PATH")
        self._redis = RedisServer("redis", self.directory / "redis")
        words = shlex.split(command)
        options = []
        if "--aclfile" in words:
            options = ["--aclfile", str(self.directory / words[words.index("--aclfile") + 1])]
        self._redis.start(*options)
        self._addresses["127.0.0.1:6379"] = f"127.0.0.1:{self._redis.port}"
        return ""

    def _translated(self, text: str) -> str:
        for shown, real in self._addresses.items():
            text = text.replace(shown, real)
        return re.sub(r"\bredis-cli\b", f"redis-cli -p {self._redis.port}", text) if self._redis else text

    def _back(self, text: str) -> str:
        for shown, real in self._addresses.items():
            text = text.replace(real, shown)
        return text


def _quickstart_options() -> str:
    """What `make serve` runs; the make itself is what CI's first minutes are."""
    makefile = (ROOT / "Makefile").read_text()
    recipe = next(line for line in makefile.splitlines() if "turnout serve" in line)
    options = recipe.partition("turnout serve ")[2]
    for name in ("CONFIG", "EXAMPLE", "ARGS"):
        value = re.search(rf"^{name} \?=[ ]?(.*)$", makefile, re.MULTILINE)
        assert value, name
        options = options.replace(f"$({name})", value[1])
    return options


def expected_exit(step: Step) -> tuple[str, int]:
    """(the output, the exit code): `[exit 2]` on a line of its own tells of one that is not 0."""
    code = _EXIT.search(step.output)
    return _EXIT.sub("", step.output), int(code[1]) if code else 0
