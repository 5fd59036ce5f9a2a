"""A small prefill/decode server pair; run it with `python -m nixl.disaggregation.demo`."""
