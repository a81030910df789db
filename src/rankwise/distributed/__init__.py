"""Training on several processes: equal factors everywhere, one small reduction a step."""
