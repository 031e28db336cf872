"""precaudit inside other tools: pytest."""
