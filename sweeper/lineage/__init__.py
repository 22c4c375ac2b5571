"""Lineage: every number traces to its data, code, config, environment and checkpoint.

`document` is the record and its schema, `record` makes it; `hashes`, `code`, `environment` and `inputs` find out what
is in it; `objects` brings data back by the hash that DVC gave it. Guarantees: importing this package imports nothing.
"""
