"""MLflow's registered models, versions and aliases as a registry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

from registry_client.adapters.mlflow.answers import (
    DownloadUri,
    LoggedModelAnswer,
    RegisteredModelAnswer,
    Run,
    RunAnswer,
    RunData,
    Version,
    VersionAnswer,
    VersionsAnswer,
    metric_values,
    tag_values,
)
from registry_client.adapters.mlflow.artifacts import ArtifactProxy
from registry_client.client import ByteStream
from registry_client.errors import InvalidReference, NotFound, NotReady, PermissionDenied
from registry_client.models import Capabilities, Lineage, ModelFile, ModelVersion
from registry_client.parts import Part
from registry_client.transport import HttpTransport

API = "api/2.0/mlflow"
STAGES = {"none": "None", "staging": "Staging", "production": "Production", "archived": "Archived"}
LATEST = "latest"
PAGE = 200

_ALIAS = re.compile(r"[\w-]{1,255}")
# SQLite's integers end here; a longer one is a server error there, not a missing version.
_NUMBER = re.compile(r"[0-9]{1,18}")
_LOGGED_MODEL = re.compile(r"models:/(m-[A-Za-z0-9]+)")

CAPABILITIES = Capabilities(
    revisions=("alias", "version", "stage", "latest"),
    checksums="none",
    ranges=True,
    parts=True,
    lineage=True,
    webhooks=True,
    write_back=True,
)


class MlflowClient:
    """A revision is tried as alias, then as version if it is a number, then as stage; `alias:x`, `version:3`
    and `stage:Production` say which, and `latest` is the highest version number."""

    kind = "mlflow"
    capabilities = CAPABILITIES

    def __init__(self, name: str, transport: HttpTransport) -> None:
        self.name = name
        self._transport = transport
        self._artifacts = ArtifactProxy(transport, registry=name)

    async def resolve(self, model: str, revision: str) -> ModelVersion:
        found = await self._find(model, revision)
        if found.status != "READY":
            raise NotReady(
                f"{self.name}/{model} version {found.version} is {found.status}"
                f"{': ' + found.status_message[:200] if found.status_message else ''}"
            )
        files = await self._artifacts.files(await self._artifact_uri(found))
        return self._described(found, files, await self._lineage(found), found.aliases)

    async def versions(self, model: str, limit: int = 100) -> list[ModelVersion]:
        """Without files and lineage."""
        aliases = await self.aliases(model)
        found = await self._search(model, limit)
        return [
            self._described(each, (), Lineage(), [a for a, v in aliases.items() if v == str(each.version)])
            for each in found
        ]

    async def aliases(self, model: str) -> Mapping[str, str]:
        answer = await self._transport.get(
            f"{API}/registered-models/get", RegisteredModelAnswer, {"name": model}
        )
        return {each.alias: str(each.version) for each in answer.registered_model.aliases}

    def open(
        self,
        version: ModelVersion,
        file: ModelFile,
        *,
        offset: int = 0,
        end: int | None = None,
        validator: str = "",
    ) -> AbstractAsyncContextManager[ByteStream]:
        return self._artifacts.open(file, Part(offset, end, validator))

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def _find(self, model: str, revision: str) -> Version:
        kind, colon, value = revision.partition(":")
        if colon:
            return await self._find_qualified(model, kind, value)
        if revision == LATEST:
            return await self._newest(model)
        if _ALIAS.fullmatch(revision):
            try:
                return await self._by_alias(model, revision)
            except NotFound as error:
                missing = error
        else:
            missing = NotFound(f"{self.name}/{model} can have no alias {revision[:80]!r}")
        if _NUMBER.fullmatch(revision):
            return await self._by_number(model, revision)
        if revision.lower() in STAGES:
            return await self._by_stage(model, revision)
        raise NotFound(f"{self.name}/{model} has no alias, version or stage {revision[:80]!r}: {missing}")

    async def _find_qualified(self, model: str, kind: str, value: str) -> Version:
        if kind == "alias":
            return await self._by_alias(model, value)
        if kind == "version" and _NUMBER.fullmatch(value):
            return await self._by_number(model, value)
        if kind == "stage":
            return await self._by_stage(model, value)
        raise InvalidReference(
            f"{kind[:40]}:{value[:80]} of {self.name}/{model}: write alias:<name>, version:<number> "
            "or stage:<name>"
        )

    async def _by_alias(self, model: str, alias: str) -> Version:
        answer = await self._transport.get(
            f"{API}/registered-models/alias", VersionAnswer, {"name": model, "alias": alias}
        )
        return answer.model_version

    async def _by_number(self, model: str, number: str) -> Version:
        answer = await self._transport.get(
            f"{API}/model-versions/get", VersionAnswer, {"name": model, "version": number}
        )
        return answer.model_version

    async def _by_stage(self, model: str, stage: str) -> Version:
        name = STAGES.get(stage.lower())
        if name is None:
            raise InvalidReference(f"{stage[:80]!r} is no stage of MLflow: {', '.join(STAGES.values())}")
        answer = await self._transport.post(
            f"{API}/registered-models/get-latest-versions",
            VersionsAnswer,
            {"name": model, "stages": [name]},
            repeatable=True,
        )
        if not answer.model_versions:
            raise NotFound(f"{self.name}/{model} has no version in stage {name}")
        return max(answer.model_versions, key=lambda each: int(each.version))

    async def _newest(self, model: str) -> Version:
        await self.aliases(model)  # a search finds nothing, instead of failing, where the model is missing
        newest = await self._search(model, 1)
        if not newest:
            raise NotFound(f"{self.name}/{model} has no versions yet")
        return await self._by_number(model, str(newest[0].version))

    async def _search(self, model: str, limit: int) -> list[Version]:
        found: list[Version] = []
        token = ""
        while len(found) < limit:
            query = {
                "filter": f"name={_quoted(model)}",
                "order_by": "version_number DESC",
                "max_results": str(min(PAGE, limit - len(found))),
            }
            page = await self._transport.get(
                f"{API}/model-versions/search",
                VersionsAnswer,
                query | ({"page_token": token} if token else {}),
            )
            found += page.model_versions
            token = page.next_page_token
            if not token or not page.model_versions:
                break
        return found[:limit]

    async def _artifact_uri(self, found: Version) -> str:
        if not found.source.startswith("models:"):
            return found.source
        answer = await self._transport.get(
            f"{API}/model-versions/get-download-uri",
            DownloadUri,
            {"name": found.name, "version": str(found.version)},
        )
        return answer.artifact_uri

    def _described(
        self, found: Version, files: tuple[ModelFile, ...], lineage: Lineage, aliases: list[str]
    ) -> ModelVersion:
        created_ms = int(found.creation_timestamp)
        return ModelVersion(
            registry=self.name,
            model=found.name,
            version=str(found.version),
            # The number alone comes back after delete and recreate. The source is the artifact URI or the
            # immutable id of a logged model, and it costs a listing no further call.
            identity=f"{created_ms}:{found.source}",
            files=files,
            aliases=tuple(sorted(aliases)),
            created_ms=created_ms,
            description=found.description,
            lineage=lineage,
        )

    async def _lineage(self, found: Version) -> Lineage:
        run = await self._run(found.run_id)
        logged = await self._logged_model(found.source)
        run_tags = tag_values(run.data.tags)
        return Lineage(
            run_id=found.run_id,
            metrics=metric_values(run.data.metrics) | metric_values(logged.metrics),
            params=tag_values(run.data.params) | tag_values(logged.params),
            datasets={each.dataset.name: each.dataset.digest for each in run.inputs.dataset_inputs},
            commit=run_tags.get("mlflow.source.git.commit", ""),
            parent=run_tags.get("mlflow.parentRunId", ""),
            tags=tag_values(found.tags),
        )

    async def _run(self, run_id: str) -> Run:
        if not run_id:
            return Run()
        try:
            return (await self._transport.get(f"{API}/runs/get", RunAnswer, {"run_id": run_id})).run
        except (NotFound, PermissionDenied):
            return Run()  # deleted, or not ours to see: the version is as servable as before

    async def _logged_model(self, source: str) -> RunData:
        logged = _LOGGED_MODEL.fullmatch(source)
        if logged is None:
            return RunData()
        try:
            answer = await self._transport.get(f"{API}/logged-models/{logged[1]}", LoggedModelAnswer)
        except (NotFound, PermissionDenied):
            return RunData()
        return answer.model.data


def _quoted(model: str) -> str:
    if "'" not in model:
        return f"'{model}'"
    if '"' not in model:
        return f'"{model}"'
    raise InvalidReference(f"model {model[:80]!r} has both kinds of quotes, which MLflow cannot search for")
