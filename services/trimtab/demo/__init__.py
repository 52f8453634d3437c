"""The demonstration: one degrading camera, from drift to promotion or rollback."""
