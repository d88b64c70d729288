"""How a registry is opened by its type, ours or a third party's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from registry_client import RegistryClient, open_registry, registry_types
from registry_client.errors import InvalidConfiguration

ADAPTER = """
from registry_client import Capabilities

class Shelf:
    kind = "shelf"
    capabilities = Capabilities(revisions=("version",), checksums="none", ranges=False, lineage=False)

    def __init__(self, name, options):
        self.name = name
        self.options = options

    async def resolve(self, model, revision): ...
    async def versions(self, model, limit=100): ...
    async def aliases(self, model): ...
    def open(self, version, file, *, offset=0): ...
    async def aclose(self): ...
"""


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution of somebody else, as pip would have left it."""
    (tmp_path / "shelf_adapter.py").write_text(ADAPTER)
    info = tmp_path / "shelf_adapter-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shelf-adapter\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[turnout.registries]\nshelf = shelf_adapter:Shelf\ndirectory = shelf_adapter:Shelf\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("shelf")
def test_a_third_party_adds_a_type() -> None:
    assert registry_types() == ["directory", "mlflow", "shelf"]
    client = open_registry("mine", "shelf", {"height_m": 2})
    assert isinstance(client, RegistryClient)
    assert (client.name, client.kind) == ("mine", "shelf")


@pytest.mark.usefixtures("shelf")
async def test_a_third_party_replaces_none_of_ours(tmp_path: Path) -> None:
    client = open_registry("local", "directory", {"path": str(tmp_path)})
    assert client.kind == "directory"
    await client.aclose()


@pytest.mark.parametrize("kind", ["", "mlfow", "__class__"])
def test_an_unknown_type_names_the_known_ones(kind: str) -> None:
    with pytest.raises(InvalidConfiguration, match="directory, mlflow"):
        open_registry("local", kind, {})


@pytest.mark.parametrize(
    ("kind", "options"), [("directory", {"path": "x"}), ("mlflow", {"url": "http://hub"})]
)
async def test_ours_follow_the_protocol(kind: str, options: dict[str, object]) -> None:
    client = open_registry("r", kind, options)
    assert isinstance(client, RegistryClient)
    assert client.kind == kind
    assert client.capabilities.revisions[0] == "alias"
    await client.aclose()


def test_a_directory_needs_no_http() -> None:
    code = (
        "import sys; from registry_client import open_registry; open_registry('l', 'directory', {'path': '.'});"
        "sys.exit('httpx' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
