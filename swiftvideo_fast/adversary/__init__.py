"""The discriminator of distribution alignment (DA): frozen backbones, trained heads, views."""
