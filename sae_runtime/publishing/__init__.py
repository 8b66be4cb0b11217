"""Publishing: a bundle, a folder of bundles or a deployed model goes to the Hugging Face Hub as one commit.

It may import core, bundle and deployed.
"""

from sae_runtime.publishing.sending import Pushed, push

__all__ = ["Pushed", "push"]
