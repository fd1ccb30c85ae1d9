"""Compare pools in a web application: `python -m benchmarks.web`.

The tests are those by which web frameworks are compared, on Starlette under uvicorn with uvloop.
"""
