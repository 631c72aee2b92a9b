"""Benchmarks: celery-streams beside today's practice, on the same server in the same run.

``python -m benchmarks`` asks every question, ``python -m benchmarks write latency`` some. One
module per question. They measure and never fail on a number: a budget missed shows in the table.
"""
