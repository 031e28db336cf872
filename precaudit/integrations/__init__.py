"""precaudit inside other tools: pytest, transformers, Lightning."""
