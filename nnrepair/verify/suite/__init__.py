"""Whole benchmarks, killable: VNN-COMP."""

from nnrepair.verify.suite.suite import SuiteResult, run_suite

__all__ = ["SuiteResult", "run_suite"]
