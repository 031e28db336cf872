"""How precaudit sees a model run: module scopes, torch functions, and training events."""
