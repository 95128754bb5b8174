"""Proof on other people's machines: cases, clocks, and the report that holds what came out.

`scripts/validate_on_sdk.py`, `validate_on_device.py` and `compare_reports.py` are thin over this.
"""
