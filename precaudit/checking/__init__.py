"""The pre-deployment gate: does a plan still hold for a model, its data and a target GPU?"""
