"""One-shot statements on connections in pipeline mode."""
