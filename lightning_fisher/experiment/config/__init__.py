"""The composed config: its options, their rules, its hash, the names made of it, and messages about it."""
