"""The pool for any driver, which knows no psycopg. Everything here is private."""
