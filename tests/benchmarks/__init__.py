"""Tests of the benchmark scripts: that they measure what they say."""
