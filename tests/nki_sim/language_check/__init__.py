"""Tests of the static check of the NKI language."""
