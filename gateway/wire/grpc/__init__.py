"""The Open Inference Protocol over gRPC. Nothing of it is imported where gRPC is switched off."""
