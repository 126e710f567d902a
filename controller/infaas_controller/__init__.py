"""The controller: registers models, keeps the view, chooses a variant for every query and hands batches to workers."""
