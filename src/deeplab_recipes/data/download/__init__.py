"""`deeplab download`: the published sets, where they come from, and how they are checked and put in place."""
