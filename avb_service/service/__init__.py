"""What Python users call, and what the commands are made of.

Floor 9. All of it works in a notebook, and with a Ray that the process is connected to already, which is used and left
running. `avb_service` offers these functions by their names.
"""

import warnings

# tqdm's, in notebooks: Ray and MLflow import it, and draw no bars.
warnings.filterwarnings("ignore", "IProgress not found")
