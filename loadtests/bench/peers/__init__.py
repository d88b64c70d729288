"""The same load on other servers: `make bench-peers`. Each `*_server.py` runs in its server's environment."""
