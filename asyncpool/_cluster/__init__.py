"""The hosts of a cluster: their addresses, roles and pools, and which one serves a request."""
