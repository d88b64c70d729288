"""A real MLflow server, and a seeder that fills it as MLflow's own client would, over plain REST."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

VARIABLE = "TURNOUT_TEST_MLFLOW"
INSTALLED = Path(__file__).parents[2] / ".venvs" / "mlflow" / "bin" / "mlflow"
READY_S = 90.0
STOP_S = 10.0

API = "/api/2.0/mlflow"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"


class MlflowServer:
    """`mlflow server` on a free loopback port, with SQLite and proxied artifacts in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.directory / "mlflow.log"

    def start(self) -> None:
        """Returns when the server answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(str(executable()), "server", "--host", "127.0.0.1", "--port", str(self.port)),
                    *("--backend-store-uri", f"sqlite:///{self.directory}/mlflow.db"),
                    *("--artifacts-destination", str(self.directory / "artifacts"), "--serve-artifacts"),
                    *("--workers", "1"),
                ],
                cwd=self.directory,
                env=_environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,  # it starts processes of its own: they are ended as one group
            )
        self._wait_until_ready()

    def stop(self) -> None:
        if self._process is None:
            return
        _signal_group(self._process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        _signal_group(self._process.pid, signal.SIGKILL)
        self._process.wait(STOP_S)
        self._process = None

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                if httpx.get(f"{self.url}/health", timeout=1.0).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        self.stop()
        pytest.fail(f"mlflow did not get ready in {READY_S:.0f} s:\n{self.log.read_text()[-4000:]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeded:
    """A version that the seeder registered; `artifact_path` is where its files lie in the proxy."""

    model: str
    version: str
    run_id: str
    artifact_path: str


class MlflowSeeder:
    """Registers models, versions, aliases and lineage. Blocking: call it before the loop, or in a thread."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=30.0)

    def close(self) -> None:
        self._http.close()

    def publish(
        self,
        model: str,
        files: Mapping[str, bytes],
        *,
        aliases: tuple[str, ...] = (),
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, str] | None = None,
        datasets: Mapping[str, str] | None = None,
        commit: str = "",
        description: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> Seeded:
        """A run with its artifacts, and a version of `model` made of them. Creates the model if need be."""
        self.create_model(model)
        run_id, root = self.create_run(commit=commit)
        self.log(run_id, metrics=metrics or {}, params=params or {}, datasets=datasets or {})
        path = f"{root}/model"
        for name, data in files.items():
            self.put(f"{path}/{name}", data)
        version = self.create_version(
            model, f"mlflow-artifacts:/{path}", run_id=run_id, description=description, tags=tags or {}
        )
        for alias in aliases:
            self.set_alias(model, alias, version)
        return Seeded(model=model, version=version, run_id=run_id, artifact_path=path)

    def create_model(self, model: str) -> None:
        answer = self._http.post(f"{API}/registered-models/create", json={"name": model})
        if answer.status_code != 200 and answer.json().get("error_code") != "RESOURCE_ALREADY_EXISTS":
            answer.raise_for_status()

    def delete_model(self, model: str) -> None:
        answer = self._http.request("DELETE", f"{API}/registered-models/delete", json={"name": model})
        answer.raise_for_status()

    def create_run(self, *, commit: str = "") -> tuple[str, str]:
        """(run id, path of its artifacts in the proxy)."""
        tags = [{"key": "mlflow.source.git.commit", "value": commit}] if commit else []
        info = self._post("runs/create", experiment_id="0", start_time=1, tags=tags)["run"]["info"]
        return info["run_id"], info["artifact_uri"].removeprefix("mlflow-artifacts:/")

    def log(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float],
        params: Mapping[str, str],
        datasets: Mapping[str, str],
        model_id: str | None = None,
    ) -> None:
        extra = {"model_id": model_id} if model_id else {}
        self._post(
            "runs/log-batch",
            run_id=run_id,
            metrics=[{"key": k, "value": v, "timestamp": 1, "step": 0, **extra} for k, v in metrics.items()],
            params=[{"key": k, "value": v} for k, v in params.items()],
        )
        if datasets:
            inputs = [
                {"dataset": {"name": k, "digest": v, "source_type": "local", "source": "{}"}, "tags": []}
                for k, v in datasets.items()
            ]
            self._post("runs/log-inputs", run_id=run_id, datasets=inputs)

    def put(self, path: str, data: bytes) -> None:
        self._http.put(f"{ARTIFACTS}/{quote(path)}", content=data).raise_for_status()

    def create_version(self, model: str, source: str, **fields: object) -> str:
        tags = fields.pop("tags", {})
        assert isinstance(tags, Mapping)
        listed = [{"key": k, "value": v} for k, v in tags.items()]
        answer = self._post("model-versions/create", name=model, source=source, tags=listed, **fields)
        return str(answer["model_version"]["version"])

    def create_logged_model(self, run_id: str, files: Mapping[str, bytes], params: Mapping[str, str]) -> str:
        """The id (`m-…`) of a model of MLflow 3, which versions name as `models:/m-…`."""
        listed = [{"key": k, "value": v} for k, v in params.items()]
        created = self._post("logged-models", experiment_id="0", source_run_id=run_id, params=listed)
        info = created["model"]["info"]
        root = info["artifact_uri"].removeprefix("mlflow-artifacts:/")
        for name, data in files.items():
            self.put(f"{root}/{name}", data)
        ready = {"model_id": info["model_id"], "status": "LOGGED_MODEL_READY"}
        self._http.patch(f"{API}/logged-models/{info['model_id']}", json=ready).raise_for_status()
        return str(info["model_id"])

    def set_alias(self, model: str, alias: str, version: str) -> None:
        self._post("registered-models/alias", name=model, alias=alias, version=version)

    def set_stage(self, model: str, version: str, stage: str) -> None:
        self._post(
            "model-versions/transition-stage",
            name=model,
            version=version,
            stage=stage,
            archive_existing_versions=False,
        )

    def _post(self, path: str, **body: object) -> dict[str, dict[str, dict[str, str]]]:
        answer = self._http.post(f"{API}/{path}", json=body)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        decoded: dict[str, dict[str, dict[str, str]]] = answer.json()
        return decoded


def executable() -> Path:
    """The `mlflow` command. Fails the test, and never skips it, where it is not installed."""
    path = Path(os.environ.get(VARIABLE) or INSTALLED)
    if not path.exists():
        pytest.fail(f"no MLflow at {path}: `make test` sets it up, or let {VARIABLE} name the mlflow command")
    return path


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One server for the session: tests keep apart by the names of their models."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def mlflow_seeder(mlflow_server: MlflowServer) -> Iterator[MlflowSeeder]:
    seeder = MlflowSeeder(mlflow_server.url)
    yield seeder
    seeder.close()


def _environment() -> dict[str, str]:
    # What the developer has set for a server of their own must not reach this one.
    own = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return own | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
