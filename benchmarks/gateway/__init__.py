"""``python -m benchmarks.gateway``: the HTTP gateway beside other servers of the protocol."""
