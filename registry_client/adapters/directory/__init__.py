"""A directory as a registry: read it with `open_directory`, fill it with `publish` and `set_alias`."""

from registry_client.adapters.directory.client import DirectoryClient, open_directory
from registry_client.adapters.directory.publish import publish, set_alias

__all__ = ["DirectoryClient", "open_directory", "publish", "set_alias"]
