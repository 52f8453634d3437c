"""Inferences and labels as Parquet files with a manifest."""
