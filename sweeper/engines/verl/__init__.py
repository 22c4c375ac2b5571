"""verl 0.9.1 as an engine.

Guarantees: nothing in this package imports verl, torch or Ray, except below `cpu/`, which verl itself loads.
"""
