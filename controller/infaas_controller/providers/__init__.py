"""Where workers come from: each provider makes machines by a name that is given to it, and takes them back."""
