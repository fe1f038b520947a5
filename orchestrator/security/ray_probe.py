"""Ask a Ray cluster one question without a token: open or token?

python -m orchestrator.security.ray_probe ADDRESS
"""

import sys

from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError


def main(address: str) -> int:
    """Exit code 1 where no Ray answers."""
    found = canonicalize_bootstrap_address(address) if address == "auto" else address
    if found is None:
        return 1
    try:
        GcsClient(address=found).internal_kv_keys(b"", b"", timeout=3)
    except AuthenticationError:
        print("token")
    else:
        print("open")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
