"""Hints for names that `cluster.read` lacks: what to use instead."""

from __future__ import annotations

from asyncpool._blocks.hints import HINTS

LISTEN = "`async with cluster.write.listen(channel)`, as a standby has no notifications"
SIZES = "cluster.write.{0}: each pool of the cluster has that of the Cluster"
OF_EACH = "`for pool in cluster.pools`, each of which has {0}"

READ_HINTS = {
    **HINTS,
    "add_listener": LISTEN,
    "remove_listener": LISTEN,
    "listen": LISTEN,
    "turn": "cluster.write.turn(key)",
    "open": "cluster.open()",
    "connect": "cluster.open()",
    "close": "cluster.close()",
    "disconnect": "cluster.close()",
    "terminate": "cluster.close(timeout=0)",
    "min_size": SIZES.format("min_size"),
    "max_size": SIZES.format("max_size"),
    "get_min_size": SIZES.format("min_size"),
    "get_max_size": SIZES.format("max_size"),
    "get_stats": "stats()",
    "pop_stats": OF_EACH.format("pop_stats()"),
    "resize": OF_EACH.format("resize()"),
}
