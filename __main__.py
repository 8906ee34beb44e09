"""`python -m tracker` where it is installed, and `python .` in a checkout."""

import sys

if __package__:
    from . import main
else:
    from tracker import main

sys.exit(main())
