"""What the fault suite is made of: a stream with faults, an independent recount, and the world they meet in."""
