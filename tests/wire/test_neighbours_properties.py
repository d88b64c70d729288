"""Whatever JSON comes: tensors that fit the signature, or a refusal with a status."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.serving.datatypes import DATATYPES
from gateway.serving.engine import Signature, TensorSpec
from gateway.serving.tensors import InferenceError
from gateway.serving.validation import Checker
from gateway.wire.infer import Codec
from gateway.wire.neighbours.mlflow import FORMATS, InvocationsCodec
from gateway.wire.neighbours.tensorflow_serving import PredictCodec


def spec(name: str, datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape, dimensions=("",) * len(shape))


SIGNATURES = [
    Signature(inputs=(spec("a", "FP32", -1, -1),), outputs=()),
    Signature(inputs=(spec("a", "BYTES", -1),), outputs=()),
    Signature(inputs=(spec("a", "INT64"), spec("b", "BOOL", -1, 1)), outputs=()),
    Signature(inputs=(), outputs=()),
]
CODECS: list[Codec] = [PredictCodec(), InvocationsCodec()]
_NAMES = st.sampled_from(["a", "b", "b64", "columns", "data", "index"])
_LEAVES = (
    st.none()
    | st.booleans()
    | st.floats()
    | st.text(st.characters(), max_size=3)
    | st.sampled_from([0, 1, -1, 2**63, 2**64, -(10**400), 10**4000, 1e308])
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=12,
)
_DOCUMENTS = st.dictionaries(st.sampled_from([*FORMATS, "params", "signature_name"]), _VALUES, max_size=2)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: type(codec).__name__)
@given(document=_DOCUMENTS | _VALUES, signature=st.sampled_from(SIGNATURES))
@settings(max_examples=500, deadline=None)
@example(document={"inputs": "\ud800"}, signature=SIGNATURES[1])
@example(document={"inputs": {"\ud800": 1}}, signature=SIGNATURES[0])
@example(document={"inputs": [[]]}, signature=SIGNATURES[0])
@example(document={"dataframe_split": {"data": []}}, signature=SIGNATURES[2])
@example(document={"inputs": {str(number): 1 for number in range(1000)}}, signature=SIGNATURES[0])
def test_tensors_or_a_refusal(codec: Codec, document: Any, signature: Signature) -> None:
    checker = Checker(signature)
    try:
        request, _ = codec.decode(json.dumps(document).encode(), {})
        arrays, _ = checker.check("m", request)
    except InferenceError as error:
        assert error.status == 400
        assert codec.encode_error(error)
    else:
        found = [(name, array.dtype, array.ndim) for name, array in arrays.items()]
        assert found == [
            (spec.name, DATATYPES[spec.datatype].dtype, len(spec.shape)) for spec in signature.inputs
        ]
