"""Data, from a source to batches.

Public names: `load_dataset`, `select_rows`, `dataset_fingerprint` in `ted.data.sources`; `validate`, `Validation`,
`Finding` in `ted.data.quality`; what turns rows into batches in `ted.data.preparation`.
"""
