"""Whether backends agree on the architectures that several of them have: ``featreg conform --across``."""
