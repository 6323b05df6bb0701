"""Holds the benchmarks; run them as modules, as in ``python -m benchmarks.bench_step``."""
