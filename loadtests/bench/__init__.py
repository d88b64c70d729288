"""Measures the gateway beside the machine's limits and beside other servers; see docs/performance.md."""
