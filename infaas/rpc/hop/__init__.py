"""The hop between a controller and a worker: framed protobuf messages over a socket, tensors beside them."""
