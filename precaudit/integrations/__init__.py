"""precaudit inside other tools: pytest, training frameworks, exports."""
