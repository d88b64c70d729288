"""What `turnout serve --config FILE` does with its file, once the store has been asked."""

from __future__ import annotations

import asyncio
import logging
import secrets
from pathlib import Path

from gateway.control.deliver import Deliverer, PrepareFailed
from gateway.control.manifest_file import read_manifest
from gateway.control.operations import Operations
from gateway.control.store import Author, Conflict, StoreError
from gateway.control.weights_errors import WeightsError
from gateway.routing.change import ChangeRefused
from gateway.routing.manifest import Manifest
from gateway.routing.manifest_values import ManifestError
from gateway.routing.state import EMPTY, Revision, StateError
from registry_client.errors import RegistryError

log = logging.getLogger(__name__)

RETRY_S = 5.0


class Bootstrap:
    """Applies the file where nothing is in force yet, or, with the embedded store, where it was edited.

    With a shared store the file never overrides what the replicas agreed on: a rolling restart with an old
    file would undo a rollout. `turnout apply` is the way there.
    """

    def __init__(
        self, config: Path | None, operations: Operations, deliverer: Deliverer, *, shared: bool
    ) -> None:
        self._config = config
        self._operations = operations
        self._deliverer = deliverer
        self._shared = shared
        self.trouble = ""

    async def run(self, store_reached: asyncio.Event) -> None:
        if self._config is not None:
            await store_reached.wait()
            settled = await self._settled(self._config)
            while not settled:
                await asyncio.sleep(RETRY_S)
                settled = await self._settled(self._config)
        await asyncio.Event().wait()

    async def _settled(self, config: Path) -> bool:
        """Whether there is nothing left to do with the file."""
        held = self._deliverer.newest
        try:
            manifest = read_manifest(config)
            if held is EMPTY:
                await self._apply(manifest, Revision(0, 0))
            elif manifest.sha256 == held.state.manifest_sha256:
                self.trouble = ""
            elif self._shared:
                log.warning("%s differs from what was applied last: see turnout plan -f %s", config, config)
            else:
                await self._apply(manifest, None)
        except Conflict:
            return False  # another replica was first: look again
        except (ManifestError, ChangeRefused) as error:
            self._note(f"{config} is refused: {error}")
            return held is not EMPTY
        except (RegistryError, WeightsError, PrepareFailed, StoreError, StateError, OSError) as error:
            self._note(f"{config} cannot be applied yet: {error}")
            return False
        self.trouble = ""
        return True

    async def _apply(self, manifest: Manifest, expect: Revision | None) -> None:
        author = Author(actor="serve --config", reason=str(self._config), op_id=secrets.token_hex(8))
        plan, outcome = await self._operations.apply(manifest, author, expect)
        log.info("applied %s: %d changes, revision %s", self._config, len(plan.changes), outcome.revision)
        for note in plan.notes:
            log.info("%s", note)

    def _note(self, trouble: str) -> None:
        if trouble != self.trouble:
            log.error("%s", trouble)
        self.trouble = trouble
