"""Tuned plans: the best K-step sampler for one model, found by measuring."""

from fastsample.tuning.report import Stage, TuneReport
from fastsample.tuning.tune import tune

__all__ = ["Stage", "TuneReport", "tune"]
