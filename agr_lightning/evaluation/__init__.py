"""Predictions -> figures that can be trusted: metrics, groups, intervals, pictures, comparisons. No Lightning."""
