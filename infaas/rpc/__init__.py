"""Messages between processes: generated protobuf, the JSON codec, and the table of edges."""
