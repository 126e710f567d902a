"""Small pieces of structured concurrency: supervised tasks, periodic ticks, one-slot publishers."""
