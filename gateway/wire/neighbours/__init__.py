"""Protocols of other model servers, on the same routes and by the same decision as `/v2`."""
