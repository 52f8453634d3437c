"""What a model server imports: log inferences and labels without blocking the request."""
