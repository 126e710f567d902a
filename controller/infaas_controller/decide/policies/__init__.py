"""Selection policies, one file each; installed ones are found in the entry point group `infaas.policies`."""
