"""Drives MLflow's own scoring client against a server: `python mlflow_scoring.py HOST:PORT`.

Runs in MLflow's environment. Prints one JSON object: behaviour → what the client gave, or
`{"exception", "text"}` where it raised. The client knows no header, so the server must have one route only.
"""

import json
import sys
from collections.abc import Callable

import numpy as np
import pandas as pd
from mlflow.pyfunc.scoring_server.client import ScoringServerClient

HOST, PORT = sys.argv[1].split(":")
Behaviour = Callable[[ScoringServerClient], object]
BEHAVIOURS: dict[str, Behaviour] = {}
ROWS = np.array([[1.0, 2.0], [3.0, 4.5]])


def behaviour(function: Behaviour) -> Behaviour:
    BEHAVIOURS[function.__name__] = function
    return function


@behaviour
def ready(client: ScoringServerClient) -> object:
    client.wait_server_ready(timeout=10)
    return client.ping()


@behaviour
def version(client: ScoringServerClient) -> object:
    return client.get_version()


@behaviour
def frame(client: ScoringServerClient) -> object:
    response = client.invoke(pd.DataFrame(ROWS, columns=["x", "y"]))
    return {"raw": dict(response), "frame": response.get_predictions().to_dict(orient="list")}


@behaviour
def frame_without_names(client: ScoringServerClient) -> object:
    return dict(client.invoke(pd.DataFrame(ROWS)))


@behaviour
def records(client: ScoringServerClient) -> object:
    frame = pd.DataFrame(ROWS, columns=["x", "y"])
    return dict(client.invoke(json.dumps({"dataframe_records": frame.to_dict(orient="records")})))


@behaviour
def array(client: ScoringServerClient) -> object:
    response = client.invoke(ROWS.astype(np.float32))
    return {"raw": dict(response), "same": response["predictions"]["same"]}


@behaviour
def rows(client: ScoringServerClient) -> object:
    return dict(client.invoke(ROWS.tolist()))


@behaviour
def params(client: ScoringServerClient) -> object:
    return dict(client.invoke(ROWS, params={"temperature": 0.5, "stop": ["a", "b"]}))


@behaviour
def instances(client: ScoringServerClient) -> object:
    return dict(client.invoke(json.dumps({"instances": [{"input": row} for row in ROWS.tolist()]})))


@behaviour
def wrong_width(client: ScoringServerClient) -> object:
    return dict(client.invoke(pd.DataFrame(np.ones((1, 3)))))


@behaviour
def missing_values(client: ScoringServerClient) -> object:
    return dict(client.invoke(pd.DataFrame([[1.0, np.nan]])))


def run(client: ScoringServerClient, function: Behaviour) -> object:
    try:
        return function(client)
    except Exception as error:
        return {"exception": type(error).__name__, "text": str(error)}


CLIENT = ScoringServerClient(HOST, PORT)
print(json.dumps({name: run(CLIENT, function) for name, function in BEHAVIOURS.items()}))
