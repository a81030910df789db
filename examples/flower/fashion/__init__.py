"""An app for Flower: FeDLRT on Fashion-MNIST."""
