"""A primary with two standbys under faults: asyncpool's cluster and pools on a multi-host DSN."""
