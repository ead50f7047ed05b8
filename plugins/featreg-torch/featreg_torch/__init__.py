"""The torch runtime that featreg's torch backends share: devices, taps, shapes, weights; no models of its own."""
