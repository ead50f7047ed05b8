"""The torch runtime that the torch backends of featreg share: devices, taps, shapes, weights. It has no models itself."""
