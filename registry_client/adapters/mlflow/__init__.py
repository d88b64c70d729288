"""MLflow's model registry, over its REST API (measured against 3.17.2)."""

from registry_client.adapters.mlflow.client import MlflowClient
from registry_client.adapters.mlflow.settings import open_mlflow

__all__ = ["MlflowClient", "open_mlflow"]
