"""Breaks engines in a real gateway's workers, as a test says: put this directory in front of PYTHONPATH.

The version whose digest names a file in TURNOUT_TEST_BROKEN fails or hangs from then on, as the file's text says.
Its engine is the real one up to then, and again when the file is gone.
"""

import os
import sys
import time
from pathlib import Path

if "gateway.node.worker" in sys.orig_argv and "TURNOUT_TEST_BROKEN" in os.environ:
    from gateway.serving import loading
    from gateway.serving.engine import EngineError

    _directory = Path(os.environ["TURNOUT_TEST_BROKEN"])
    _load = loading.load_onnx

    def _broken(path, options, derived=None):
        engine = _load(path, options, derived)
        run, note = engine.run, next(_directory / part for part in path.parts if len(part) == 64)

        def perhaps(inputs, outputs):
            how = note.read_text() if note.exists() else ""
            if how == "raise":
                raise EngineError("the model failed: it is broken on purpose")
            while how == "hang" and note.exists():
                time.sleep(0.05)
            return run(inputs, outputs)

        engine.run = perhaps
        return engine

    loading.load_onnx = _broken
