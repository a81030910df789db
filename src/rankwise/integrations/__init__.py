"""Callbacks for the training loops of others; training is right without them."""
