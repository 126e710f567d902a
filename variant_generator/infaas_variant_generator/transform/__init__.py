"""Recipes: each file turns a registered graph into one that runs differently and answers the same."""
