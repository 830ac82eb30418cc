"""The discriminator of distribution alignment: frozen backbones, trained heads, views."""
