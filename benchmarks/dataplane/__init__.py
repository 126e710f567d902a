"""What the data plane costs and bears, measured against peers and limits of the same run; `run.py` is its command."""
