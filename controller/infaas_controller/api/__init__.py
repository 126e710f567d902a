"""The edges of the controller: the Open Inference Protocol over REST and gRPC, and the control plane."""
