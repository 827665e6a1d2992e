"""`python -m dit_video`: the command line without its script on the PATH."""

import sys

from dit_video.cli.main import main

sys.exit(main())
