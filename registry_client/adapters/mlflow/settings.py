"""How to reach an MLflow server: the manifest's options, and the variables that MLflow's users have set."""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import Mapping

from registry_client.adapters.mlflow.answers import explain
from registry_client.adapters.mlflow.client import MlflowClient
from registry_client.addresses import configured_url
from registry_client.errors import InvalidConfiguration
from registry_client.transport import Outside, Retries, TimeLimits, open_transport

_OPTIONS = frozenset({"url", "workspace"})
_TRUE = frozenset({"true", "1"})


def open_mlflow(
    name: str,
    options: Mapping[str, object],
    *,
    environ: Mapping[str, str] | None = None,
    limits: TimeLimits | None = None,
    retries: Retries | None = None,
    outside: Outside | None = None,
) -> MlflowClient:
    """Options: `url` (else MLFLOW_REGISTRY_URI, else MLFLOW_TRACKING_URI) and `workspace`.

    Credentials and TLS come from MLFLOW_TRACKING_USERNAME and _PASSWORD, MLFLOW_TRACKING_TOKEN,
    MLFLOW_TRACKING_INSECURE_TLS, _SERVER_CERT_PATH and _CLIENT_CERT_PATH. Raises `InvalidConfiguration`.
    """
    env = os.environ if environ is None else environ
    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        raise InvalidConfiguration(
            f"registry {name!r} (mlflow) has the unknown option {unknown[0]!r}; "
            f"known: {', '.join(sorted(_OPTIONS))}"
        )
    transport = open_transport(
        configured_url(_url(name, options, env), registry=name),
        headers=_authorization(env) | _workspace(name, options, env),
        tls=_tls(name, env),
        limits=limits,
        retries=retries,
        outside=outside,
        explain=explain,
    )
    return MlflowClient(name, transport)


def _url(name: str, options: Mapping[str, object], env: Mapping[str, str]) -> str:
    url = options.get("url") or env.get("MLFLOW_REGISTRY_URI") or env.get("MLFLOW_TRACKING_URI")
    if not isinstance(url, str) or not url:
        raise InvalidConfiguration(
            f"registry {name!r} (mlflow) needs the option `url`, or MLFLOW_TRACKING_URI in the environment"
        )
    return url


def _authorization(env: Mapping[str, str]) -> dict[str, str]:
    # The order in which MLflow's own client looks.
    user, password = env.get("MLFLOW_TRACKING_USERNAME"), env.get("MLFLOW_TRACKING_PASSWORD")
    if user and password:
        return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}
    token = env.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _workspace(name: str, options: Mapping[str, object], env: Mapping[str, str]) -> dict[str, str]:
    workspace = options.get("workspace") or env.get("MLFLOW_WORKSPACE")
    if not workspace:
        return {}
    if not isinstance(workspace, str):
        raise InvalidConfiguration(f"registry {name!r} (mlflow): the option `workspace` must be a text")
    return {"X-MLFLOW-WORKSPACE": workspace}


def _tls(name: str, env: Mapping[str, str]) -> ssl.SSLContext | bool:
    insecure = env.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in _TRUE
    authority = env.get("MLFLOW_TRACKING_SERVER_CERT_PATH")
    own = env.get("MLFLOW_TRACKING_CLIENT_CERT_PATH")
    if insecure and authority:
        raise InvalidConfiguration(
            f"registry {name!r} (mlflow): MLFLOW_TRACKING_INSECURE_TLS and MLFLOW_TRACKING_SERVER_CERT_PATH "
            "contradict each other, unset one"
        )
    if not insecure and not authority and not own:
        return True
    try:
        context = ssl.create_default_context(cafile=authority)
        if own:
            context.load_cert_chain(own)
    except OSError as error:
        raise InvalidConfiguration(
            f"registry {name!r} (mlflow): the certificate in MLFLOW_TRACKING_SERVER_CERT_PATH or "
            f"MLFLOW_TRACKING_CLIENT_CERT_PATH cannot be used: {error}"
        ) from error
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
