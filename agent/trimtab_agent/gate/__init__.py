"""Champion against challenger on held-out data. Pure."""
