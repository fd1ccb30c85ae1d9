"""What stands behind `async with pool...` and behind the one-shot methods."""
