"""Benchmarks: run them as modules, ``python -m benchmarks.bench_step``."""
