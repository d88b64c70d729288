"""What runs one version, one file an engine."""

import os

# Since 1.32 ONNX Runtime reports to its maker over the network, and writes an id and a database under the home,
# unless this is set before it is imported. A gateway calls nobody that its manifest does not name.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
