"""psycopg, made fit for a pool: its driver, connections, cursors and sockets."""
