"""What this package adds to avb-service; `pyproject.toml` names it, and each part is imported when it is chosen."""
