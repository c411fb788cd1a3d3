"""The allocation service: a FastAPI application over the public page of alphalloc."""
