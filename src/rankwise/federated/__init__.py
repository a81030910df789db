"""Federated training in low rank: messages in, messages out, no transport inside."""
