"""The hop between a controller and a worker: framed protobuf messages over a unix or TCP socket, tensors beside them."""
