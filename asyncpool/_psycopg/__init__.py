"""The psycopg driver of the pool: connections, cursors and sockets."""
