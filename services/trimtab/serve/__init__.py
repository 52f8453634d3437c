"""The reference model server: Open Inference Protocol v2, arms by hash, its own event stream."""
