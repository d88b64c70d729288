"""The one versioned document that is in force, and what is denied beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, NamedTuple, Self

import msgspec

SCHEMA = 1
WHOLE_BP = 10_000
"""Basis points of a whole: weights are basis points inside and per cent at the edge."""
PREVIOUS_KEPT = 5
"""How many earlier pins of the fallback are remembered. Only the first that is not denied is kept loaded."""

ExplicitVersions = Literal["any", "known", "off"]
GraphOptimization = Literal["disabled", "basic", "extended", "all"]
Concurrency = int | Literal["auto", "off"]
ShareWeights = Literal["auto", "on", "off"]


class StateError(ValueError):
    """A document that cannot be in force: unreadable, of a newer schema, or contradictory."""


class Revision(NamedTuple):
    """The order of states. An epoch is one life of the store; within it `rev` counts up by one a change."""

    epoch: int
    rev: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.rev}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """`"1.7"` → `Revision(1, 7)`. Raises `ValueError`."""
        epoch, dot, rev = text.strip().strip('"').partition(".")
        if not (dot and epoch.isascii() and epoch.isdigit() and rev.isascii() and rev.isdigit()):
            raise ValueError(f"revision {text[:40]!r} is not EPOCH.REV, for example 1.7")
        return cls(int(epoch), int(rev))


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """A version with its digest. Only pins are served."""

    registry: str
    model: str
    version: str
    digest: str
    """SHA-256 over the version's sorted (path, size, sha256), in hex: `registry_client.version_digest`."""
    identity: str = ""
    """The registry's own immutable id of this release."""


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a version runs. The defaults suit many small models on few cores."""

    threads: int = 1
    """Intra-op threads of one session; 0 lets the engine take every core."""
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    graph_optimization: GraphOptimization = "all"
    share_weights: ShareWeights = "auto"
    """Whether workers map one file with a version's weights; auto: where it is large, and they are several."""
    batching: bool | None = None
    """None: on where the first dimension of every input and output is the same dynamic one."""
    max_batch_size: int = 64
    max_queue: int = 1024
    """Requests that may wait for this version in one worker; past it, 503."""
    concurrency: Concurrency = "auto"
    """Requests in flight, waiting and running, in one worker. `auto` limits them while the version is
    overloaded; `off` leaves `max_queue` alone."""


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One of the versions behind a route."""

    pin: Pin
    reference: str
    """As the manifest writes it: what `plan` resolves again."""
    weight_bp: int = 0


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """The stable name that applications call, and what is behind it."""

    variants: dict[str, Variant]
    fallback: str
    previous: tuple[Pin, ...] = ()
    """Earlier pins of the fallback, the newest first: where a rollback of a promoted version leads."""
    sticky: str = "header:turnout-key"
    salt: str = ""
    overrides: bool = False
    explicit_versions: ExplicitVersions = "any"
    timeout_ms: int = 30_000
    engine: EngineOptions = EngineOptions()


class RegistryDeclaration(msgspec.Struct, frozen=True, kw_only=True):
    """A registry as the manifest declares it; never a secret, those come from the environment."""

    type: str
    options: dict[str, Any] = {}


class State(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """The document. It changes only whole, by compare-and-set on its revision."""

    schema: int = SCHEMA
    registries: dict[str, RegistryDeclaration] = {}
    routes: dict[str, Route] = {}
    manifest_sha256: str = ""
    """Of the manifest that was applied last: tells an edited file from an unchanged one at a restart."""

    @cached_property
    def encoded(self) -> bytes:
        """Once: with 10,000 routes it takes 50 ms, and it is written, rung and hashed."""
        return msgspec.json.encode(self, order="deterministic")

    @cached_property
    def sha256(self) -> str:
        return state_sha256(self.encoded)


class DenyKey(NamedTuple):
    """What a deny is on: this digest gets no traffic on this route."""

    route: str
    digest: str

    def __str__(self) -> str:
        return f"{self.route}|{self.digest}"

    @classmethod
    def parse(cls, text: str) -> Self:
        route, bar, digest = text.partition("|")
        if not bar:
            raise StateError(f"deny {text[:80]!r} is not route|digest")
        return cls(route, digest)


class Deny(msgspec.Struct, frozen=True, kw_only=True):
    """A tombstone. The set only grows until somebody lifts one, so two sides of a partition may both act."""

    version: str
    """For people; the key holds the digest."""
    rev: int = 0
    """The revision that it was committed with; 0 while it is only local and waits to be published."""
    op_id: str = ""
    actor: str = ""
    reason: str = ""
    us: int = 0
    """When, in microseconds since the epoch, by the store's clock."""


class InForce(msgspec.Struct, frozen=True, kw_only=True):
    """A document with its revision and the denies that go with it: what a replica holds."""

    revision: Revision
    state: State
    denies: Mapping[DenyKey, Deny] = {}
    commit_us: int = 0
    """When the store made this revision, in microseconds since the epoch by the store's clock; 0 if unknown."""
    base: Revision = Revision(0, 0)
    """The revision of an earlier epoch whose state this epoch began with; 0.0 where it began with nothing."""
    head: str = ""
    """The history's head when this was read or written; "" where the history has no hash chain yet."""

    def denied(self, route: str, pin: Pin) -> Deny | None:
        return self.denies.get(DenyKey(route, pin.digest))

    @property
    def ahead(self) -> int:
        """Denies that are applied before, or without, the revision that holds them."""
        return sum(1 for deny in self.denies.values() if deny.rev == 0 or deny.rev > self.revision.rev)

    @property
    def label(self) -> str:
        """For the `turnout-revision` header: `1.7`, or `1.7+1` with one deny ahead of the revision."""
        return f"{self.revision}+{self.ahead}" if self.ahead else str(self.revision)


EMPTY = InForce(revision=Revision(0, 0), state=State())
"""What a replica holds before anything was ever applied."""


def encode_state(state: State) -> bytes:
    """Canonical JSON: equal states give equal bytes, so that a hash can stand for them."""
    return state.encoded


def state_sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def decode_state(raw: bytes, sha256: str | None = None) -> State:
    """The document in `raw`. Raises `StateError` where it is damaged, too new or contradictory."""
    if sha256 is not None and state_sha256(raw) != sha256:
        raise StateError("the state document does not match its sha256: it is damaged or was edited by hand")
    try:
        schema = msgspec.json.decode(raw, type=_SchemaOnly).schema
        if schema > SCHEMA:
            raise StateError(
                f"the state has schema {schema}, this release knows {SCHEMA}: upgrade this replica"
            )
        state = msgspec.json.decode(raw, type=State)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StateError(f"the state document is unreadable: {error}") from error
    check_state(state)
    return state


class _SchemaOnly(msgspec.Struct):
    schema: int


def check_state(state: State) -> None:
    """Raises `StateError` and names the field, where a document contradicts itself."""
    for name, route in state.routes.items():
        at = f"routes.{name}"
        if not route.variants:
            raise StateError(f"{at}.variants is empty: a route needs at least one variant")
        if route.fallback not in route.variants:
            raise StateError(f"{at}.fallback {route.fallback!r} is no variant of the route")
        for variant_name, variant in route.variants.items():
            if not 0 <= variant.weight_bp <= WHOLE_BP:
                raise StateError(
                    f"{at}.variants.{variant_name}.weight_bp {variant.weight_bp} is not in 0..{WHOLE_BP}"
                )
        total = sum(variant.weight_bp for variant in route.variants.values())
        if total not in (0, WHOLE_BP):
            raise StateError(f"{at}: the weights add up to {total / 100:g} %, not to 100 % (or all 0)")


class Envelope(msgspec.Struct, kw_only=True):
    """How a state lies in a file."""

    epoch: int
    rev: int
    sha256: str
    doc: str
    deny: dict[str, Deny]
    commit_us: int = 0
    base: tuple[int, int] = (0, 0)
    head: str = ""


def encode_in_force(held: InForce, *, document: bool = True) -> bytes:
    """Without the document for a reader that has it: of 10,000 routes it is 4 MB, and a deny is 100 bytes."""
    return msgspec.json.encode(
        Envelope(
            epoch=held.revision.epoch,
            rev=held.revision.rev,
            sha256=held.state.sha256,
            doc=held.state.encoded.decode() if document else "",
            deny={str(key): deny for key, deny in held.denies.items()},
            commit_us=held.commit_us,
            base=held.base,
            head=held.head,
        )
    )


def decode_in_force(raw: bytes) -> InForce:
    """Raises `StateError`."""
    envelope = decode_envelope(raw)
    return in_force(envelope, decode_state(envelope.doc.encode(), envelope.sha256))


def decode_envelope(raw: bytes) -> Envelope:
    """Raises `StateError`."""
    try:
        return msgspec.json.decode(raw, type=Envelope)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StateError(f"the state file is unreadable: {error}") from error


def in_force(envelope: Envelope, state: State) -> InForce:
    return InForce(
        revision=Revision(envelope.epoch, envelope.rev),
        state=state,
        denies={DenyKey.parse(key): deny for key, deny in envelope.deny.items()},
        commit_us=envelope.commit_us,
        base=Revision(*envelope.base),
        head=envelope.head,
    )
