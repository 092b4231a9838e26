"""Fine-tuning pipelines."""

import logging

# It is loaded with PEFT where it is installed, and on CPUs with bf16 instructions then warns of a kernel that it would download.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
