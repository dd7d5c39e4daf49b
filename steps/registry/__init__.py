"""What a registered model is made of: `versions`, the `aliases` that move between them, and who may be champion."""
