"""A pool for each host of a cluster, under one face."""
