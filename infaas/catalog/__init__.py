"""What must never be lost: tasks, models, versions, variants, profiles, decisions, audit."""
