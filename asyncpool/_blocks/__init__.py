"""The blocks (`async with pool...`) and the one-shot methods of the pool."""
